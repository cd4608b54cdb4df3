"""Checkpoints written beside training: the state is copied at the call, a thread of each rank writes its part of it.

The threads agree through the job's key-value store, so no collective runs outside of the main threads, and no main
thread touches the disk. Rank 0 makes the folder, and seals it once every rank has said what it wrote. If one could not,
or took longer than `checkpoint.commit_seconds`, none of it counts: the older checkpoint stays the newest, the run goes
on and tries again at the next occasion.

    main thread            thread of each rank                      key in the store
    copy, start -------->  0: look for room, make the folder        ready
    train                  write own files, fsync                   wrote/RANK: digests, or the fault
    poll()                 0: state, recipe, files.json, COMMIT     verdict: sealed, or why not
    <----------------------------------------------------------------------
    tell what became of it 0: delete older ones, or what has failed

The verdict is one key that is claimed once, by the thread of rank 0 or by any main thread that has waited for too long.
All main threads wait for that key and for no thread of their own, so they go on together whoever hangs. Where the
others were first, rank 0 takes its COMMIT back.
"""

import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from train.agreement import fault_of, on_first_rank, rank_in, size_of, summed_over, words_of
from train.checkpoint import commits, disk, pruning
from train.checkpoint.commits import FileEntry
from train.checkpoint.contents import Contents, Outcome
from train.checkpoint.host import Aside, HostCopies, beside
from train.checkpoint.tensors import write_boxes

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
_RANKS_AT_ONCE = 32
"""That look at the store so often; of more each looks more rarely, as one thread of one node answers all of them."""
_PATIENCE = 1.1
"""Of main threads, in times of what a save may take: the thread of rank 0 gives up before, and knows who is late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Save:
    """One save under way."""

    contents: Contents
    path: Path
    keys: dist.Store
    nbytes: int
    stall_seconds: float
    started: float
    written: threading.Event = field(default_factory=threading.Event)
    """This rank's thread has done its part, and reads the copies no more."""
    tidied: threading.Event = field(default_factory=threading.Event)
    """It has ended."""


class Saver:
    """Writes the checkpoints of one run, one at a time. Every rank of the world makes one and calls its methods alike.

    Without an initialised torch.distributed it serves one process.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        commit_seconds: float,
        tell: Callable[[Outcome], None],
        tidy: Callable[[Path], object],
        seconds_left: Callable[[], float] = lambda: math.inf,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Args:
        run_dir: checkpoints go to run_dir/checkpoints/.
        commit_seconds: from the copy to the seal; a save that takes longer is given up by all.
        tell: hears what became of each save, in the thread that called `save`, `poll`, `settle` or `finish`.
        tidy: is given each folder that was sealed, on rank 0 and beside training, to delete older ones.
        seconds_left: to the run, which may have been asked to end; no save waits longer for the one before.
        group: the ranks that save together; None is the world.
        """
        self._run_dir = Path(run_dir)
        self._tidied = tidy
        self._seconds = commit_seconds
        self._seconds_left = seconds_left
        self._tell = tell
        self._group = group
        self._rank, self._size = rank_in(group), size_of(group)
        self._pause = _POLL_SECONDS * max(1.0, self._size / _RANKS_AT_ONCE)
        # Of this start of the run: folders and keys have names that no other start's have.
        self._token = on_first_rank("naming this start of the run", lambda: secrets.token_hex(3), group)
        base = distributed_c10d._get_default_store() if dist.is_initialized() else dist.HashStore()
        self._store = dist.PrefixStore(f"checkpoints/{self._token}", base)
        self._count = 0
        self._current: _Save | None = None
        self._last: _Save | None = None
        self._waited = 0.0
        self._telling, self._tidying = threading.Lock(), threading.Lock()
        self._host = HostCopies()

    def save(self, gather: Callable[[], Contents], aside: Aside | None = None) -> None:
        """Copy what `gather` gives to host memory and have it written. First waits for the save before, if need be.

        With `aside` it is called in another thread than the main one, which may only be in `settle` meanwhile.
        """
        self.settle()
        began = time.monotonic()
        with beside(aside):
            contents = gather()
        path = commits.attempt_path(self._run_dir, contents.step, f"{self._token}{self._count % 256:02x}")
        self._count += 1
        nbytes, hanging = self._agreed(contents, aside)
        copied = self._host.copied(contents.files, aside) if not hanging else {}
        now = time.monotonic()
        made = _Save(
            contents=replace(contents, files={name: chunks for name, chunks in copied.items() if chunks}),
            path=path,
            keys=dist.PrefixStore(path.name, self._store),
            nbytes=nbytes,
            stall_seconds=now - began + self._waited,
            started=now,
        )
        self._waited = 0.0
        if hanging:
            self._tell(_outcome(made, f"{hanging} rank(s) still hang in the save before", 0.0))
            return
        self._current = self._last = made
        # A thread that hangs in a write cannot be ended, and must not keep the process from ending.
        threading.Thread(target=self._write, args=(made,), name="checkpoint", daemon=True).start()

    def poll(self) -> None:
        """Tell what became of the save under way, if that is known, or if it has taken too long."""
        with self._telling:
            save = self._current
            if save is None:
                return
            if time.monotonic() - save.started > _PATIENCE * self._seconds:
                self._claim(save, f"there was no verdict within {_PATIENCE * self._seconds:.3g} s")
            if save.keys.check(["verdict"]):
                fault, seconds = json.loads(save.keys.get("verdict"))
                self._current = None
                self._tell(_outcome(save, fault, seconds))

    def settle(self) -> None:
        """Wait for the save under way, if there is one, and tell what became of it.

        No longer than it may take, or than the run has left: then all ranks give it up. Of several threads one tells.
        """
        self._wait(self._seconds_left)

    def finish(self) -> None:
        """The same for the last save of a run, which gets all of its time; rank 0 waits for older ones to go, too."""
        self._wait(lambda: math.inf)
        last = self._last
        if last is not None and last.written.is_set():
            last.tidied.wait(max(0.0, min(self._seconds, self._seconds_left())))

    def _wait(self, seconds_left: Callable[[], float]) -> None:
        began = time.monotonic()
        while (current := self._current) is not None:
            if seconds_left() <= 0:
                self._claim(current, "it was still being written when the run had to end")
            self.poll()
            if self._current is not None:
                time.sleep(self._pause)
        self._waited += time.monotonic() - began

    def _agreed(self, contents: Contents, aside: Aside | None) -> tuple[int, int]:
        """(bytes of all ranks, ranks that still write the save before), the same on every rank. A collective, but for
        `aside`."""
        hanging = self._last is not None and not self._last.written.is_set()
        numbers = [contents.nbytes, hanging]
        nbytes, count = aside.summed(numbers) if aside else summed_over(numbers, self._group)
        return int(nbytes), int(count)

    def _claim(self, save: _Save, fault: str | None) -> None:
        """Say what becomes of a save, unless somebody has."""
        save.keys.compare_set("verdict", "", json.dumps([fault, time.monotonic() - save.started]))

    def _write(self, save: _Save) -> None:
        """What the thread does."""
        keys, said = save.keys, dict[str, Any]()
        try:
            fault = self._written(save)
        except BaseException as error:  # whatever it is: the run goes on without this checkpoint
            fault = words_of(error)
            said = {"fault": fault, "records": [], "files": {}}
        save.written.set()
        try:
            if said:
                keys.set(f"wrote/{self._rank}", json.dumps(said))
            if self._rank == 0 or said:
                self._claim(save, fault)
            if self._rank == 0:
                self._tidy(save)
        except Exception as error:
            log.warning("checkpoints of %s were not tidied up: %s", self._run_dir, words_of(error))
        save.tidied.set()

    def _written(self, save: _Save) -> str | None:
        """Write this rank's part, on rank 0 the rest as well; what this rank knows to speak against the whole."""
        keys, deadline = save.keys, save.started + self._seconds
        if self._rank == 0:
            keys.set("ready", json.dumps(fault_of(lambda: self._begin(save))))
        fault = self._awaited(keys, "ready", deadline, "rank 0 did not make the folder")
        said: dict[str, Any] = {"fault": fault, "records": list(save.contents.records), "files": {}}
        if fault is None:
            said["fault"] = fault_of(lambda: said.update(files=self._write_files(save)))
        keys.set(f"wrote/{self._rank}", json.dumps(said))
        return fault or fault_of(lambda: self._seal(save, deadline)) if self._rank == 0 else None

    def _begin(self, save: _Save) -> None:
        """On rank 0: make the folder, if the disk has room for what goes there. Raises OSError."""
        if save.nbytes > disk.free_bytes(self._run_dir):
            pruning.clear_abandoned(self._run_dir)
        free = disk.free_bytes(self._run_dir)
        if save.nbytes > free:
            room = f"{self._run_dir} has {free / 1e9:.3g} GB left"
            raise OSError(f"it takes {save.nbytes / 1e9:.3g} GB, {room}; `triptych checkpoint prune` makes some")
        disk.make_folder(save.path)

    def _write_files(self, save: _Save) -> dict[str, list[Any]]:
        written = {}
        for name, chunks in save.contents.files.items():
            digest = write_boxes(save.path / name, chunks)
            written[name] = [digest.size, digest.crc32c]
        return written

    def _seal(self, save: _Save, deadline: float) -> None:
        """On rank 0: collect what was written, add what holds no tensors, seal. Raises what speaks against it."""
        contents, home = save.contents, save.path.name
        files, faults = dict(contents.kept), dict[str, list[int]]()
        records: list[Any] = []
        for rank in range(self._size):
            said = self._awaited(save.keys, f"wrote/{rank}", deadline, f"rank {rank} did not write its part")
            if said["fault"] is not None:
                faults.setdefault(said["fault"], []).append(rank)
            records += said["records"]
            for name, (size, crc32c) in said["files"].items():
                files[name] = FileEntry(digest=disk.Digest(size=size, crc32c=crc32c), folder=home)
        if faults:
            raise OSError("; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in faults.items()))
        texts = {
            commits.STATE: json.dumps(dict(contents.told), indent=1),
            commits.RECIPE: contents.recipe,
            commits.QUARANTINE: "".join(json.dumps(record) + "\n" for record in records),
        }
        for name, text in texts.items():
            files[name] = FileEntry(digest=disk.write(save.path / name, [text.encode()]), folder=home)
        if time.monotonic() > deadline or save.keys.check(["verdict"]):
            raise TimeoutError(f"it was not written within {self._seconds:.0f} s")
        commits.seal(save.path, files)

    def _tidy(self, save: _Save) -> None:
        """On rank 0, after the verdict: what goes wrong here changes nothing about it."""
        writers = [f"wrote/{rank}" for rank in range(self._size)]
        fault, _ = json.loads(save.keys.get("verdict"))
        if fault is not None:  # the others may have given it up while it was being sealed
            (save.path / commits.COMMIT).unlink(missing_ok=True)
        with self._tidying:
            if fault is None:
                self._tidied(save.path)
            elif self._answered(save, writers) and save.path.exists():
                # A disk that was full must not stay so. Where a rank hangs in a write the folder is still in use.
                disk.remove_folder(save.path)
        for key in writers:
            save.keys.delete_key(key)  # else a long run fills the store

    def _answered(self, save: _Save, writers: list[str]) -> bool:
        """Whether every rank has said what it wrote, by when it has to."""
        while not save.keys.check(writers):
            if time.monotonic() - save.started > self._seconds:
                return False
            time.sleep(self._pause)
        return True

    def _awaited(self, keys: dist.Store, key: str, deadline: float, late: str) -> Any:
        """What a key holds once it is there. Asked again and again: a store that waits lets no other thread in."""
        while not keys.check([key]):
            if time.monotonic() > deadline or keys.check(["verdict"]):
                raise TimeoutError(f"{late} in time")
            time.sleep(self._pause)
        return json.loads(keys.get(key))


def _outcome(save: _Save, fault: str | None, seconds: float) -> Outcome:
    step, stall = save.contents.step, save.stall_seconds
    return Outcome(
        step=step, path=save.path, fault=fault, nbytes=save.nbytes, stall_seconds=stall, write_seconds=seconds
    )
