"""Checkpoints written beside training: the state is copied at the call, a thread of each rank writes its part of it.

The threads agree through the job's key-value store, so no collective runs outside of the main threads, and none of
these waits for a disk. Rank 0 makes the folder, and seals it once every rank has said what it wrote. If one could not,
or took longer than `checkpoint.commit_seconds`, none of it counts: the older checkpoint stays the newest, the run goes
on and tries again at the next occasion.

    main thread            thread of each rank                      key in the store
    copy, start -------->  0: make the folder                       ready
    train                  write own files, fsync                   wrote/RANK: digests, or the fault
                           0: state, recipe, files.json, COMMIT     verdict: sealed, or why not
    poll() <-------------  outcome, the same on every rank
"""

import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from train.agreement import fault_of, on_first_rank, rank_in, size_of, summed_over, words_of
from train.checkpoint import commits, disk, pruning
from train.checkpoint.boxes import Chunk
from train.checkpoint.commits import FileEntry
from train.checkpoint.host import Aside, HostCopies, beside
from train.checkpoint.tensors import write_boxes

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.02
_PATIENCE = 1.5
"""Of those who wait for a save, in times of what it may take: rank 0 gives up first and says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a rank gives to a save."""

    step: int
    files: Mapping[str, Sequence[Chunk]]
    """This rank's boxes by the file they go to; names are unique over the ranks. A file without a box is not made."""
    told: Mapping[str, Any]
    """What JSON can hold, for state.json; rank 0's is written."""
    recipe: str
    """The resolved recipe, YAML; rank 0's is written."""
    records: Sequence[Mapping[str, Any]] = ()
    """Samples that could not be used; those of all ranks are written."""
    kept: Mapping[str, FileEntry] = field(default_factory=dict)
    """Files of earlier checkpoints of this run that are as they were; rank 0's are believed."""

    @property
    def nbytes(self) -> int:
        return sum(chunk.data.nbytes for chunks in self.files.values() for chunk in chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one save; the same on every rank, but for the seconds."""

    step: int
    path: Path
    fault: str | None
    """Why it counts for nothing; None: it was sealed."""
    nbytes: int
    """Of tensors, written by all ranks together."""
    stall_seconds: float
    """By which this rank's training was held up: the copy, and waiting for the save before."""
    write_seconds: float
    """From the copy to the seal."""


@dataclass(kw_only=True, slots=True)
class _Save:
    """One save under way."""

    contents: Contents
    path: Path
    nbytes: int
    stall_seconds: float
    started: float
    ended: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None


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
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Args:
        run_dir: checkpoints go to run_dir/checkpoints/.
        commit_seconds: from the copy to the seal; a save that takes longer is given up by all.
        tell: hears what became of each save, in the main thread, from `save`, `poll` and `finish`.
        tidy: is given each folder that was sealed, on rank 0 and beside training, to delete older ones.
        group: the ranks that save together; None is the world.
        """
        self._run_dir = Path(run_dir)
        self._tidied = tidy
        self._seconds = commit_seconds
        self._tell = tell
        self._group = group
        self._rank, self._size = rank_in(group), size_of(group)
        # Of this start of the run: folders and keys have names that no other start's have.
        self._token = on_first_rank("naming this start of the run", lambda: secrets.token_hex(3), group)
        base = distributed_c10d._get_default_store() if dist.is_initialized() else dist.HashStore()
        self._store = dist.PrefixStore(f"checkpoints/{self._token}", base)
        self._count = 0
        self._current: _Save | None = None
        self._host = HostCopies()

    def save(self, gather: Callable[[], Contents], aside: Aside | None = None) -> None:
        """Copy what `gather` gives to host memory and have it written. First waits for the save before, if need be.

        With `aside` it is called in another thread than the main one, which must not come here meanwhile.
        """
        began = time.monotonic()
        self.finish()
        with beside(aside):
            contents = gather()
        path = commits.attempt_path(self._run_dir, contents.step, f"{self._token}{self._count % 256:02x}")
        self._count += 1
        nbytes, fault = self._agreed(contents, aside)
        if fault is not None:
            stall = time.monotonic() - began
            self._tell(_outcome(contents.step, path, fault, nbytes, stall, 0.0))
            return
        copied = self._host.copied(contents.files, aside)
        now = time.monotonic()
        self._current = _Save(
            contents=replace(contents, files={name: chunks for name, chunks in copied.items() if chunks}),
            path=path,
            nbytes=nbytes,
            stall_seconds=now - began,
            started=now,
        )
        # A thread that hangs in a write cannot be ended, and must not keep the process from ending.
        threading.Thread(target=self._write, args=(self._current,), name="checkpoint", daemon=True).start()

    def poll(self) -> None:
        """Tell what became of the save under way, if that is known."""
        current = self._current
        if current is not None and current.ended.is_set():
            assert current.outcome is not None
            self._current = None
            self._tell(current.outcome)

    def finish(self) -> None:
        """Wait for the save under way, at most as long as it may take, and tell what became of it."""
        if self._current is not None:
            end = self._current.started + _PATIENCE**2 * self._seconds
            self._current.ended.wait(max(0.0, end - time.monotonic()))
        self.poll()

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way whose outcome has not been told."""
        return self._current is not None

    def _agreed(self, contents: Contents, aside: Aside | None) -> tuple[int, str | None]:
        """(bytes of all ranks, why they cannot be saved), the same on every rank. A collective, but for `aside`."""
        free = 0.0
        if self._rank == 0:
            try:
                free = float(disk.free_bytes(self._run_dir))
                if free < 2 * self._size * contents.nbytes:  # of the others' bytes nothing is known yet
                    pruning.clear_abandoned(self._run_dir)
                    free = float(disk.free_bytes(self._run_dir))
            except OSError:  # all ranks wait for this number; that the folder cannot be reached is told when it is made
                free = math.inf
        numbers = [contents.nbytes, free, self._current is not None]
        nbytes, free, hanging = aside.summed(numbers) if aside else summed_over(numbers, self._group)
        if hanging:
            return int(nbytes), f"{hanging:.0f} rank(s) still hang in the save before"
        if nbytes > free:
            room = f"{self._run_dir} has {free / 1e9:.3g} GB left"
            return int(nbytes), f"it takes {nbytes / 1e9:.3g} GB, {room}; `triptych checkpoint prune` makes some"
        return int(nbytes), None

    def _write(self, save: _Save) -> None:
        """What the thread does."""
        try:
            fault = self._written(save)
        except BaseException as error:  # whatever it is: the run goes on without this checkpoint
            fault = words_of(error)
        seconds = time.monotonic() - save.started
        step = save.contents.step
        save.outcome = _outcome(step, save.path, fault, save.nbytes, save.stall_seconds, seconds)
        save.ended.set()

    def _written(self, save: _Save) -> str | None:
        """Write this rank's part, on rank 0 the rest as well; why the whole is no checkpoint, None if it is one."""
        keys = dist.PrefixStore(save.path.name, self._store)
        deadline = save.started + self._seconds
        if self._rank == 0:
            keys.set("ready", json.dumps(fault_of(lambda: disk.make_folder(save.path))))
        fault = _awaited(keys, "ready", deadline, "rank 0 did not make the folder")
        said: dict[str, Any] = {"fault": fault, "records": list(save.contents.records), "files": {}}
        if fault is None:
            said["fault"] = fault_of(lambda: said.update(files=self._write_files(save)))
        keys.set(f"wrote/{self._rank}", json.dumps(said))
        if self._rank == 0:
            keys.set("verdict", json.dumps(fault_of(lambda: self._seal(save, keys, deadline))))
            self._tidy(save, keys)
        return _awaited(keys, "verdict", save.started + _PATIENCE * self._seconds, "rank 0 did not seal it")

    def _write_files(self, save: _Save) -> dict[str, list[Any]]:
        written = {}
        for name, chunks in save.contents.files.items():
            digest = write_boxes(save.path / name, chunks)
            written[name] = [digest.size, digest.crc32c]
        return written

    def _seal(self, save: _Save, keys: dist.Store, deadline: float) -> None:
        """On rank 0: collect what was written, add what holds no tensors, seal. Raises what speaks against it."""
        contents, home = save.contents, save.path.name
        files, faults = dict(contents.kept), dict[str, list[int]]()
        records: list[Any] = []
        for rank in range(self._size):
            said = _awaited(keys, f"wrote/{rank}", deadline, f"rank {rank} did not write its part")
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
        if time.monotonic() > deadline:
            raise TimeoutError(f"it was not written within {self._seconds:.0f} s")
        commits.seal(save.path, files)

    def _tidy(self, save: _Save, keys: dist.Store) -> None:
        """On rank 0, after the verdict: what goes wrong here changes nothing about it."""
        try:
            writers = [f"wrote/{rank}" for rank in range(self._size)]
            answered = keys.check(writers)
            for key in writers:
                keys.delete_key(key)  # else a long run fills the store
            if (save.path / commits.COMMIT).exists():
                self._tidied(save.path)
            elif answered and save.path.exists():
                # A disk that was full must not stay so. Where a rank hangs in a write the folder is still in use.
                disk.remove_folder(save.path)
        except Exception as error:
            log.warning("older checkpoints of %s were not pruned: %s", self._run_dir, words_of(error))


def _outcome(step: int, path: Path, fault: str | None, nbytes: int, stall: float, seconds: float) -> Outcome:
    return Outcome(step=step, path=path, fault=fault, nbytes=nbytes, stall_seconds=stall, write_seconds=seconds)


def _awaited(keys: dist.Store, key: str, deadline: float, late: str) -> Any:
    """What a key holds once it is there. Asked again and again: a store that waits lets no other thread in."""
    while not keys.check([key]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{late} in time")
        time.sleep(_POLL_SECONDS)
    return json.loads(keys.get(key))
