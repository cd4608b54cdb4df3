"""Samples that could not be used: a list for each replica in the run folder, and what a checkpoint has of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.checkpoint.commits import QUARANTINE, Commit


def keeper(run_dir: str | Path, dp_rank: int) -> Callable[[dict[str, Any]], None]:
    """Appends a record to this replica's list."""
    path = _path(run_dir, dp_rank)

    def keep(record: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    return keep


def records(run_dir: str | Path, dp_rank: int) -> list[dict[str, Any]]:
    """This replica's list as it is now."""
    path = _path(run_dir, dp_rank)
    # A host that was lost may leave half a line at the end.
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def go_on_from(run_dir: str | Path, commit: Commit | None) -> None:
    """Make the lists of a run what they were at the checkpoint it goes on from, on one process for all.

    Samples that come after it are met again, and would stand there twice.
    """
    for path in Path(run_dir).glob("quarantine_*.jsonl"):
        path.unlink()
    if commit is not None and QUARANTINE in commit.files:
        text = commit.text(QUARANTINE)
        if text:
            _path(run_dir, 0).write_text(text)


def _path(run_dir: str | Path, dp_rank: int) -> Path:
    return Path(run_dir) / f"quarantine_{dp_rank}.jsonl"
