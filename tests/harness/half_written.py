"""Checkpoints that a tool writes, on disks that have no room or fail on the way: nothing of them may be left."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.checkpoints.listing import import_hf
from launch.checkpoints.tools import averaged
from tests.harness.damaged import save_trained
from tests.harness.part_folders import qwen2_vl_folder
from tests.harness.runs import model_config
from tests.prove.planting import replace_name
from train.checkpoint import disk
from train.checkpoint.commits import step_of
from train.errors import CheckpointError
from train.resolve import compose

ROOM = "room"
CALLS = ("make_folder", "write_block", "sync", "rename")


def left_behind(folder: Path, tools: tuple[str, ...] = ("import", "average")) -> tuple[list[str], list[str], int]:
    """(faults after which something is left, faults that were not told, how many there were): no room on the disk, and
    an I/O error at the last call of each kind for each file, in each tool."""
    left, untold, count = [], [], 0
    made = _tools(folder)
    for tool in tools:
        seen: list[str] = []
        _struck(made[tool], folder / tool / "undisturbed", None, seen)
        for place in (ROOM, *dict.fromkeys(seen)):
            run_dir = folder / tool / f"struck {count}"
            said = _struck(made[tool], run_dir, (place, seen.count(place)), [])
            word = "GB left" if place == ROOM else os.strerror(errno.EIO)
            untold += [f"{tool}: {place}"] if word not in said else []
            left += [f"{tool}: {place}"] if run_dir.exists() else []
            count += 1
    return left, untold, count


def _tools(folder: Path) -> dict[str, Callable[[Path], object]]:
    model = model_config()
    run = replace(compose("quickstart_stage1"), model=model, run_dir=str(folder / "run"))
    qwen2_vl_folder(folder / "hf", model)
    commits = [save_trained(run, step) for step in (1, 2)]
    return {
        "import": lambda run_dir: import_hf(folder / "hf", replace(run, run_dir=str(run_dir))),
        "average": lambda run_dir: averaged(run_dir, commits),
    }


def _struck(tool: Callable[[Path], object], run_dir: Path, strike: tuple[str, int] | None, seen: list[str]) -> str:
    """What the tool says where it fails, struck at the n-th time that a place is passed; `seen` gets all that are."""

    def before(call: str) -> Callable[[Any], Any]:
        def make(real: Any) -> Any:
            def planted(first: Any, *more: Any) -> Any:
                seen.append(f"{call} {_name(first)}")
                if strike == (seen[-1], seen.count(seen[-1])):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return real(first, *more)

            return planted

        return make

    mends = [replace_name(disk, call, before(call)) for call in CALLS]
    if strike is not None and strike[0] == ROOM:
        mends.append(replace_name(disk, "free_bytes", lambda _: lambda path: 1000))
    try:
        tool(run_dir)
    except CheckpointError as error:
        return str(error)
    finally:
        for mend in mends:
            mend()
    return ""


def _name(what: int | Path) -> str:
    """Of a file, or of the checkpoint's folder, which has another name each time."""
    path = what if isinstance(what, Path) else Path(f"/proc/self/fd/{what}").readlink()
    return "the folder" if step_of(path.name) is not None else path.name
