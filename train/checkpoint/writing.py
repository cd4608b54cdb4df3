"""What the thread of each rank does for a save: write this rank's files, on rank 0 the rest as well, and seal.

A save that was given up is dropped by its threads: between two blocks each looks whether there is a verdict. So one
that is only slow lets go of the copies, which the next save needs, within a block and the wait for the disk that it is
in. One that hangs in the kernel cannot be called back.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from train.agreement import fault_of, words_of
from train.checkpoint import commits, disk, pruning
from train.checkpoint.commits import FileEntry
from train.checkpoint.contents import LOST, Contents
from train.checkpoint.tensors import write_boxes

log = logging.getLogger(__name__)
_LOOK = 25
"""Pauses between two looks of a thread that writes for the verdict: half a second, longer the more ranks there are."""
_ROOM = 0.25
"""Of the time for a save, that it waits at most for room which the one before still gives back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Save:
    """One save under way, as main threads and those that write know it."""

    contents: Contents
    path: Path
    keys: dist.Store
    nbytes: int
    stall_seconds: float
    started: float
    before: threading.Event | None
    """`tidied` of the save before."""
    sealed: dict[str, FileEntry] = field(default_factory=dict)
    """What the commit holds, on rank 0 once there is one."""
    written: threading.Event = field(default_factory=threading.Event)
    """This rank's thread has done its part, and reads the copies no more."""
    tidied: threading.Event = field(default_factory=threading.Event)
    """It has ended."""

    def claim(self, fault: str | None) -> None:
        """Say what becomes of it, unless somebody has."""
        self.keys.compare_set("verdict", "", json.dumps([fault, time.monotonic() - self.started]))

    @property
    def is_decided(self) -> bool:
        return self.keys.check(["verdict"])

    def verdict(self) -> tuple[str | None, float]:
        """What speaks against it, and the seconds that it took, once it is decided."""
        fault, seconds = json.loads(self.keys.get("verdict"))
        return fault, seconds

    @property
    def is_tidy(self) -> bool:
        """Whether the thread of rank 0 has deleted what there was to delete."""
        return self.keys.check(["tidy"])

    def is_left(self, ranks: int) -> bool:
        """Whether no thread of any of so many ranks writes for it any more."""
        return self.keys.add("left", 0) >= ranks


class Writing:
    """The threads' part of one start of a run; on each rank one."""

    def __init__(
        self, run_dir: Path, rank: int, ranks: int, *, seconds: float, pause: float, tidy: Callable[[Path], object]
    ) -> None:
        """Args:
        seconds: from the copy to the seal.
        pause: between two looks at the store.
        tidy: is given each folder that was sealed, on rank 0, to delete older ones.
        """
        self._run_dir = run_dir
        self._rank, self._size = rank, ranks
        self._seconds, self._pause = seconds, pause
        self._tidied = tidy
        self._tidying = threading.Lock()

    def start(self, save: Save) -> None:
        """Begin to write. A thread that hangs in a write cannot be ended, and must not keep the process from ending."""
        threading.Thread(target=self._write, args=(save,), name="checkpoint", daemon=True).start()

    def _write(self, save: Save) -> None:
        """What the thread does."""
        keys, said = save.keys, dict[str, Any]()
        try:
            fault = self._written(save)
        except BaseException as error:  # whatever it is: the run goes on without this checkpoint
            fault = words_of(error)
            said = {"fault": fault, "records": [], "files": {}}
        save.written.set()
        try:
            keys.add("left", 1)
            if said:
                keys.set(f"wrote/{self._rank}", json.dumps(said))
            if self._rank == 0 or said:
                save.claim(fault)
            if self._rank == 0:
                self._tidy(save)
        except Exception as error:
            log.warning("checkpoints of %s were not tidied up: %s", self._run_dir, words_of(error))
        save.tidied.set()
        if self._rank == 0:
            with suppress(dist.DistError):
                keys.set("tidy", "")

    def _written(self, save: Save) -> str | None:
        """Write this rank's part, on rank 0 the rest as well; what this rank knows to speak against the whole."""
        keys, deadline = save.keys, save.started + self._seconds
        if self._rank == 0:
            keys.set("ready", json.dumps(fault_of(lambda: self._begin(save))))
        fault = self._awaited(save, "ready", deadline, "rank 0 did not make the folder")
        said: dict[str, Any] = {"fault": fault, "records": list(save.contents.records), "files": {}}
        if fault is None:
            said["fault"] = fault_of(lambda: said.update(files=self._write_files(save)))
        keys.set(f"wrote/{self._rank}", json.dumps(said))
        return fault or fault_of(lambda: self._seal(save, deadline)) if self._rank == 0 else None

    def _begin(self, save: Save) -> None:
        """On rank 0: make the folder, if the disk has room for what goes there. Raises OSError."""
        if save.nbytes > disk.free_bytes(self._run_dir):
            if save.before is not None:
                save.before.wait(_ROOM * self._seconds)
            pruning.clear_abandoned(self._run_dir)
        free = disk.free_bytes(self._run_dir)
        if save.nbytes > free:
            room = f"{self._run_dir} has {free / 1e9:.3g} GB left"
            raise OSError(f"it takes {save.nbytes / 1e9:.3g} GB, {room}; `triptych checkpoint prune` makes some")
        disk.make_folder(save.path)

    def _write_files(self, save: Save) -> dict[str, list[Any]]:
        """Raises OSError; TimeoutError once the save was given up."""
        written = {}
        next_look = 0.0

        def look() -> None:
            nonlocal next_look
            if (now := time.monotonic()) >= next_look:
                if save.is_decided:
                    raise TimeoutError("it was given up")
                next_look = now + _LOOK * self._pause

        for name, chunks in save.contents.files.items():
            digest = write_boxes(save.path / name, chunks, look)
            written[name] = [digest.size, digest.crc32c]
        return written

    def _seal(self, save: Save, deadline: float) -> None:
        """On rank 0: collect what was written, add what holds no tensors, seal. Raises what speaks against it."""
        contents, home = save.contents, save.path.name
        files, faults = dict(contents.kept), dict[str, list[int]]()
        records: list[Any] = []
        for rank in range(self._size):
            said = self._awaited(save, f"wrote/{rank}", deadline, f"rank {rank} did not write its part")
            if said["fault"] is not None:
                faults.setdefault(said["fault"], []).append(rank)
            records += said["records"]
            for name, (size, crc32c) in said["files"].items():
                files[name] = FileEntry(digest=disk.Digest(size=size, crc32c=crc32c), folder=home)
        if faults:
            raise OSError("; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in faults.items()))
        lost = [f"{e.folder}/{name}" for name, e in contents.kept.items() if not _is_there(save.path.parent, name, e)]
        if lost:
            raise OSError(f"{', '.join(lost)} {LOST}")
        texts = {
            commits.STATE: json.dumps(dict(contents.told), indent=1),
            commits.RECIPE: contents.recipe,
            commits.QUARANTINE: "".join(json.dumps(record) + "\n" for record in records),
        }
        for name, text in texts.items():
            files[name] = FileEntry(digest=disk.write(save.path / name, [text.encode()]), folder=home)
        if time.monotonic() > deadline or save.is_decided:
            raise TimeoutError(f"it was not written within {self._seconds:.0f} s")
        commits.seal(save.path, files)
        save.sealed.update(files)

    def _tidy(self, save: Save) -> None:
        """On rank 0, after the verdict: what goes wrong here changes nothing about it."""
        fault, _ = save.verdict()
        if fault is None:
            with self._tidying:
                self._tidied(save.path)
        else:
            (save.path / commits.COMMIT).unlink(missing_ok=True)  # the others may have given it up while it was sealed
            # A disk that was full must not stay so. Where a rank hangs in a write the folder is still in use.
            if self._all_left(save) and save.path.exists():
                with self._tidying:
                    disk.remove_folder(save.path)
        for rank in range(self._size):
            save.keys.delete_key(f"wrote/{rank}")  # else a long run fills the store

    def _all_left(self, save: Save) -> bool:
        """Whether every rank is done with its part, or has been called back from it, by when it has to."""
        end = time.monotonic() + self._seconds
        while not save.is_left(self._size):
            if time.monotonic() > end:
                return False
            time.sleep(self._pause)
        return True

    def _awaited(self, save: Save, key: str, deadline: float, late: str) -> Any:
        """What a key holds once it is there. Asked again and again: a store that waits lets no other thread in."""
        while not save.keys.check([key]):
            if time.monotonic() > deadline or save.is_decided:
                raise TimeoutError(f"{late} in time")
            time.sleep(self._pause)
        return json.loads(save.keys.get(key))


def _is_there(checkpoints: Path, name: str, entry: FileEntry) -> bool:
    """Whether a file of an earlier checkpoint has its size. Its digest is not taken: each save would read it whole."""
    try:
        return (checkpoints / entry.folder / name).stat().st_size == entry.digest.size
    except OSError:
        return False
