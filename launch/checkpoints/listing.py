"""`triptych checkpoint list|show|verify|import`: what lies in a run's folder."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.checkpoints.repair import Fault, faults
from launch.reports import Report, table
from model.hf_config import check_sizes
from model.hf_read import open_hf
from train.checkpoint.commits import (
    Attempt,
    attempts,
    is_sealed,
    listed_files,
    mark_damaged,
    mark_verified,
    open_commit,
    problems,
    verified_at,
)
from train.checkpoint.load import read_tensors
from train.checkpoint.rewrite import write_whole_commit
from train.config import RunConfig
from train.ready import check_run_folder
from train.resolve import to_yaml

log = logging.getLogger(__name__)


DELETED = "deleted while it was read, as a run does that goes on"
UNFINISHED = "never finished: the save is under way, or was cut off"


def listed(run_dir: str | Path) -> Report:
    """Every checkpoint folder of a run, newest first. Nothing but state.json and files.json is read."""
    rows = [_row(attempt) for attempt in attempts(run_dir)]
    head = ["checkpoint", "step", "stage", "tokens", "loss", "GB", "written GB", "saved at", "verified"]
    lines = [head, *([_cell(row[key]) for key in _COLUMNS] for row in rows)] if rows else []
    said = table(lines) or [f"{run_dir} has no checkpoint"]
    return Report(lines=said, data=rows, good=bool(rows))


_COLUMNS = ("name", "step", "stage", "tokens", "loss", "gb", "written_gb", "saved_at", "verified")


def _row(attempt: Attempt) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"name": attempt.path.name, "step": attempt.step}
    if not attempt.sealed:
        return row | {"verified": "never finished"}
    try:
        state, files = open_commit(attempt.path).state, listed_files(attempt.path)
    except (OSError, ValueError) as error:
        return row | {"verified": f"damaged: {error}" if is_sealed(attempt.path) else DELETED}
    own = sum(entry.digest.size for entry in files.values() if entry.folder == attempt.path.name)
    return row | {
        "stage": state.get("stage"),
        "tokens": state.get("counters", {}).get("tokens"),
        "loss": state.get("loss"),
        "gb": sum(entry.digest.size for entry in files.values()) / 1e9,
        "written_gb": own / 1e9,
        "saved_at": state.get("saved_at"),
        "verified": verified_at(attempt.path) or "not since",
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown(where: str | Path) -> Report:
    """State, then every tensor with shape and dtype, of a run's newest finished checkpoint or of one folder.

    Of the files with tensors only headers are read: their bytes are verified by `verified` and by whoever goes on.
    Raises ValueError if there is none.
    """
    attempt = next((attempt for attempt in attempts(where) if attempt.sealed), None)
    if attempt is None:
        raise ValueError(f"{where} has no finished checkpoint")
    commit = open_commit(attempt.path)
    reader = read_tensors(commit.path)
    tensors = {
        name: {"shape": list(reader.shape(name)), "dtype": str(reader.dtype(name)).removeprefix("torch.")}
        for name in reader.names()
    }
    lines = [str(commit.path), *(f"{key}: {value}" for key, value in commit.state.items())]
    lines += [f"{name}  {about['shape']}  {about['dtype']}" for name, about in tensors.items()]
    return Report(lines=lines, data={"path": str(commit.path), "state": commit.state, "tensors": tensors})


def verified(where: str | Path) -> Report:
    """Read every byte of every finished checkpoint at `where`, and every tensor where digests hold (repair.py).

    Unfinished ones are named, a run that trains may have one under way, and so are those that it deletes meanwhile. The
    report is good if one was read through and none is damaged.
    """
    lines, data = list[str](), list[dict[str, Any]]()
    for attempt in attempts(where):
        name, counts = attempt.path.name, attempt.sealed
        wrong, found = _read_through(attempt.path) if counts else ([], [])
        if (wrong or found) and not is_sealed(attempt.path):
            wrong, found, counts = [], [], False
        if counts:
            (mark_damaged if wrong or found else mark_verified)(attempt.path)
            said = "; ".join(wrong) or f"every digest holds, {_in_order(found)}"
        else:
            said = DELETED if attempt.sealed else UNFINISHED
        lines += [f"{name}  {said}", *(f"  {fault.line}" for fault in found)]
        data.append({"name": name, "finished": counts, "problems": wrong, "faults": [fault.line for fault in found]})
    good = any(row["finished"] for row in data) and not any(row["problems"] or row["faults"] for row in data)
    return Report(lines=lines or [f"{where} has no checkpoint"], data=data, good=good)


def _read_through(path: Path) -> tuple[list[str], list[Fault]]:
    """(what is wrong with files, what is wrong with tensors where files are right)"""
    wrong = problems(path)
    try:
        return wrong, [] if wrong else faults(open_commit(path))
    except (OSError, ValueError):
        if is_sealed(path):
            raise
        return ["it is not there any more"], []


def _in_order(found: Sequence[Fault]) -> str:
    if not found:
        return "every tensor is in order"
    cure = "`triptych checkpoint repair` mends it" if all(fault.curable for fault in found) else "beyond repair"
    return f"but {len({fault.tensor for fault in found})} tensor(s) are not in order; {cure}"


def import_hf(folder: str | Path, run: RunConfig) -> Path:
    """Turn a Hugging Face folder into a checkpoint of weights alone, for `init.from_run` of later runs.

    One tensor is held in memory at a time. `init.from_hf` needs no import.

    Args:
        folder: Qwen2-VL or plain Qwen2, safetensors.
        run: its run_dir, which may hold no checkpoint yet, receives this one as step 0; its model must be the folder's.

    Raises:
        ValueError: checkpoints are there already, other sizes than the recipe's, with both values, or tensors that do
            not fit, named.
    """
    check_run_folder(replace(run, resume=False))  # a later step's checkpoint would stay the newest
    check_sizes(folder, run.model)
    reader = open_hf(folder, run.model)
    if widened := reader.widened():
        log.warning(
            "%s stores the parts of %d fused tensors in several dtypes; each is kept in the wider one, and export "
            "writes it so: %s",
            folder,
            len(widened),
            ", ".join(widened[:3]) + (", ..." if len(widened) > 3 else ""),
        )
    told = {"step": 0, "stage": "import", "steps_taken": None, "source": Path(folder).name}
    return write_whole_commit(run.run_dir, 0, reader, reader.names(), reader.read, told=told, recipe=to_yaml(run))
