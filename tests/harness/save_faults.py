"""A fault at one place of one save, on one rank of a real run.

Places are every call that a save makes to the disk (train/checkpoint/disk.py), by what it writes; the copy and the
agreement before it; and every word that the writing threads wait for. A place that is passed again is numbered, but for
writes: of a file's blocks one is a place, for tensors the second, which leaves half a file.
"""

import errno
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.prove.planting import replace_name
from train.checkpoint import disk, host, pruning, save, writing
from train.checkpoint.commits import TENSORS
from train.checkpoint.generators import state_file

KINDS = ("SIGKILL", "disk full", "I/O error", "hang")
IN_MAIN_THREAD = ("agree", "copy")
"""Places where a hang is one of the main thread, which ends the job."""
STRUCK_STEP = 2
"""Whose save is struck: there is one before it to go on from, and there are steps after it."""
AFTER_SEAL = ("fsync the folder, time 2", "prune", "rename to PRUNED", "fsync the folder, time 3")
"""Places after COMMIT has its name: an error there changes nothing about it."""
_STRUCK_BLOCK = 2
_FOREVER = 3600.0
_PARTS = ("vision", "merger", "language", "optimizer")


def places(rank: int, ranks: int) -> tuple[str, ...]:
    """The places that a rank of data-parallel `ranks` passes, in order, where nothing is frozen and one commit kept."""
    files = [*(f"{part}.{rank:05d}{TENSORS}" for part in _PARTS), state_file(rank)]
    tensors = [f"{do} {file}" for file in files for do in ("write", "fsync")]
    if rank:
        return ("agree", "copy", "await ready", *tensors)
    texts = [
        f"{do} {name}"
        for name in ("state.json", "recipe.yaml", "quarantine.jsonl", "files.json", "COMMIT.part")
        for do in ("write", "fsync")
        if (do, name) != ("write", "quarantine.jsonl")  # of no bytes
    ]
    return (
        *("agree", "copy", "make the folder", "fsync checkpoints", "await ready"),
        *tensors,
        *(f"await wrote/{other}" for other in range(ranks)),
        *texts,
        *("fsync the folder", "rename to COMMIT", "fsync the folder, time 2"),
        *("prune", "rename to PRUNED", "fsync the folder, time 3"),
    )


def strike(rank: int, struck_rank: int, place: str, kind: str, met: str) -> None:
    """Arm the fault in this process; the file `met` appears when it comes."""

    def meet(seen: str) -> None:
        if seen == place:
            Path(met).touch()
            _fault(kind)

    if rank == struck_rank:
        _at_places(meet)


def note(rank: int, folder: str) -> None:
    """Write the places that this rank passes to folder/RANK.json, in order."""
    seen: list[str] = []

    def keep(place: str) -> None:
        seen.append(place)
        (Path(folder) / f"{rank}.json").write_text(json.dumps(seen))

    _at_places(keep)


def _fault(kind: str) -> None:
    if kind == "SIGKILL":
        os.kill(os.getpid(), 9)
    if kind == "hang":
        time.sleep(_FOREVER)
    number = errno.ENOSPC if kind == "disk full" else errno.EIO
    raise OSError(number, os.strerror(number))


def _at_places(meet: Callable[[str], object]) -> None:
    """Have `meet` called at each place of the save after STRUCK_STEP, before what is done there."""
    of_thread = threading.local()
    passed: Counter[str] = Counter()

    def arrive(place: str) -> None:
        if getattr(of_thread, "step", 0) == STRUCK_STEP:
            place = re.sub(r"step_\d+\.[0-9a-f]{8}", "the folder", place)
            passed[place] += 1
            if not place.startswith("write"):
                meet(place if passed[place] == 1 else f"{place}, time {passed[place]}")
            elif passed[place] == (_STRUCK_BLOCK if place.endswith((TENSORS, ".state")) else 1):
                meet(place)

    def in_main(real: Callable[..., Any]) -> Callable[..., Any]:
        def begin(self: Any, gather: Callable[[], Any], aside: Any = None, **named: Any) -> Any:
            def gathered() -> Any:
                contents = gather()
                of_thread.step = contents.step
                return contents

            try:
                return real(self, gathered, aside, **named)
            finally:
                of_thread.step = 0

        return begin

    def in_writer(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(self: Any, under_way: Any) -> Any:
            of_thread.step = under_way.contents.step
            return real(self, under_way)

        return write

    def before(name_of: Callable[..., str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                arrive(name_of(*given))
                return real(*given, **named)

            return call

        return make

    replace_name(save.Saver, "save", in_main)
    replace_name(writing.Writing, "_write", in_writer)
    replace_name(save.Saver, "_agreed", before(lambda *_: "agree"))
    replace_name(host.HostCopies, "copied", before(lambda *_: "copy"))
    replace_name(writing.Writing, "_awaited", before(lambda _self, _save, key, *_: f"await {key}"))
    replace_name(disk, "make_folder", before(lambda path: "make the folder"))
    replace_name(disk, "write_block", before(lambda number, _: f"write {_name(number)}"))
    replace_name(disk, "sync", before(lambda number: f"fsync {_name(number)}"))
    replace_name(disk, "rename", before(lambda _, to: f"rename to {to.name}"))
    replace_name(pruning, "prune", before(lambda *_: "prune"))


def _name(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name
