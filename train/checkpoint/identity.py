"""Which run checkpoints belong to, so that none uploads among those of another, which it would prune.

A run draws an id at its first start. RUN/run.json has it, state.json of every checkpoint, and run.json at the prefix
that the run uploads to, which is written once, before anything else. Who finds another id there leaves it alone.
"""

import json
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import ExistingObject, MissingObject
from train.checkpoint import commits, disk
from train.checkpoint.bucket import found_in, whole

if TYPE_CHECKING:
    from data.store.oss import OssStore
    from data.store.oss_writer import OssWriter

RUN = "run.json"
SAVES = "saves.jsonl"
"""What became of each save of the run in a folder (train/metrics.py)."""
KEY = "run"
"""In run.json and in state.json."""
_ID = re.compile(r"[0-9a-f]{16}")


class Taken(ValueError):
    """A prefix belongs to another run: to try again is of no use."""


def id_of(run_dir: str | Path) -> str | None:
    """The id of the run in a folder; None if it has none yet. Raises ValueError, OSError."""
    path = Path(run_dir) / RUN
    with suppress(FileNotFoundError, NotADirectoryError):
        return _parsed(path.read_bytes(), f"{path} does not hold the id of a run; delete it, checkpoints have it too")
    commit = commits.newest_readable(run_dir)
    told = commit.state.get(KEY) if commit is not None else None
    return told if isinstance(told, str) and _ID.fullmatch(told) else None


def begun_id(run_dir: str | Path) -> str | None:
    """The same for a start: None as well where the folder's run has saved and nothing of it is left, as its checkpoints
    were deleted to begin anew. That is another run. Raises ValueError, OSError."""
    sealed = any(attempt.sealed for attempt in commits.attempts(run_dir))
    return id_of(run_dir) if sealed or not _has_saved(run_dir) else None


def settled_id(run_dir: str | Path) -> str:
    """The same, drawn now if need be, and from now on in the folder. For one process. Raises ValueError, OSError."""
    run = begun_id(run_dir)
    if run is None:
        run = secrets.token_hex(8)
        (Path(run_dir) / RUN).unlink(missing_ok=True)
    write_id(run_dir, run)
    return run


def _has_saved(run_dir: str | Path) -> bool:
    try:
        lines = (Path(run_dir) / SAVES).read_text(encoding="utf-8").splitlines()
        return any(json.loads(line).get("fault", "") is None for line in lines)
    except (OSError, ValueError, AttributeError):
        return False


def write_id(run_dir: str | Path, run: str) -> None:
    """Leave an id in a run's folder, where there is none. Raises OSError."""
    path = Path(run_dir) / RUN
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{RUN}.part")
        part.unlink(missing_ok=True)
        disk.write(part, [_text(run)])
        disk.rename(part, path)


def owner_of(store: "OssStore", address: str) -> str | None:
    """The id of the run that a prefix belongs to; None if nothing says so. Raises ValueError, StoreError."""
    try:
        raw = whole(store, RUN)
    except MissingObject:
        return None
    return _parsed(raw, f"{address}/{RUN} does not hold the id of a run; name another prefix, or delete that object")


def check_owner(store: "OssStore", address: str, run_dir: str | Path) -> str | None:
    """Hold a prefix to the run in a folder that goes on; returns `owner_of`. A folder without checkpoints and without
    an id may go on with any run.

    Checkpoints of before runs had ids are known by their names, of which no two runs have the same.

    Raises Taken if it is another run's, ValueError, StoreError.
    """
    owner, ours = owner_of(store, address), id_of(run_dir)
    if owner is not None and ours is not None:
        fits = owner == ours
    else:
        here = {attempt.path.name for attempt in commits.attempts(run_dir)}
        there = {each.name for each in found_in(store.tree("step_")) if each.sealed}
        fits = not here or bool(here & there) or (owner is None and not there)
    if not fits:
        raise taken(owner, ours, address, run_dir)
    return owner


def taken(owner: str | None, ours: str | None, address: str, run_dir: str | Path) -> Taken:
    """What to raise."""
    return Taken(
        f"{address} holds the checkpoints of {_shown(owner)}, and {run_dir} is {_shown(ours)}, which would delete them "
        f"there: set checkpoint.upload to another prefix, or go on with the run that is there by `triptych resume "
        f"{address} --run-dir FOLDER` with a folder that no run has"
    )


def claim(writer: "OssWriter", address: str, run_dir: str | Path) -> None:
    """Make a prefix that of the run in a folder, unless it is. Raises Taken if it is another run's, ValueError,
    StoreError."""
    ours = settled_id(run_dir)
    if check_owner(writer, address, run_dir) is None:
        with suppress(ExistingObject):  # of another run, or of a try whose answer was lost
            writer.put(RUN, _text(ours), is_new=True)
    owner = owner_of(writer, address)
    if owner != ours:
        raise taken(owner, ours, address, run_dir)


def _shown(run: str | None) -> str:
    return "a run without an id" if run is None else f"run {run}"


def _text(run: str) -> bytes:
    return json.dumps({KEY: run}).encode() + b"\n"


def _parsed(raw: bytes, fault: str) -> str:
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        told = None
    run = told.get(KEY) if isinstance(told, dict) else None
    if not isinstance(run, str) or not _ID.fullmatch(run):
        raise ValueError(fault)
    return run
