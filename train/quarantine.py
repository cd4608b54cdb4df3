"""Samples that could not be used: a list for each replica in the run folder, and what a checkpoint has of them."""

import json
from pathlib import Path
from typing import Any

from train.checkpoint.commits import QUARANTINE, Commit
from train.lines import Lines


class Quarantine:
    """This replica's list, which begins with what is in its file."""

    def __init__(self, run_dir: str | Path, dp_rank: int) -> None:
        path = _path(run_dir, dp_rank)
        # A host that was lost may leave half a line at the end.
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}\n")]
        self._lines = Lines(path)

    def keep(self, record: dict[str, Any]) -> None:
        """Add a record; a disk that does not take it is told of, and ends nothing."""
        self.records.append(record)
        self._lines.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Write what the disk has not taken so far, if it does now."""
        self._lines.close()


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
