"""What a run was really given to train on, sample by sample, told by content and not by what the plan says it is."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from data.config import DataConfig
from data.encoding.tokenizer import load_tokenizer
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan, assign_rows
from data.types import PackedRow

Rows = dict[tuple[int, int, int], list[int]]
"""(step, replica, place) -> a mark for each sample of the row."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """How what a run trained on differs from what its plan says, read in one thread from a folder."""

    lost: int
    """Samples that were due in a step and did not come in it."""
    repeated: int
    """Samples that came in a step in which they were not due, or more often than that."""
    differing: int
    """Rows of which a bit is another, or that came in another place."""
    samples: int
    """That were due."""


def marks(row: PackedRow, patches_per_token: int) -> list[int]:
    """A CRC32C for each sample of a row, of all that the model is given of it; no sample id is part of it."""
    found = []
    end = patch_end = 0
    for length in row.segment_lengths.tolist():
        start, end = end, end + length
        visual = row.visual_index[(row.visual_index >= start) & (row.visual_index < end)]
        patch_start, patch_end = patch_end, patch_end + len(visual) * patches_per_token
        arrays = (row.tokens[start:end], row.targets[start:end], row.positions[:, start:end], visual - start)
        parts = [np.ascontiguousarray(array).tobytes() for array in (*arrays, row.patches[patch_start:patch_end])]
        found.append(google_crc32c.value(b"".join(parts)))
    assert (end, patch_end) == (len(row.tokens), len(row.patches)), (end, patch_end)
    return found


def record(folder: Path, dp_rank: int, step: int, rows: list[PackedRow], patches_per_token: int) -> None:
    """Add a step to what a replica was given."""
    line = {"step": step, "rows": [marks(row, patches_per_token) for row in rows]}
    with (folder / f"delivered_{dp_rank}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def due_rows(config: DataConfig, steps: int, dp_size: int) -> Rows:
    """What a run of `config` has to be given, read here without loader, worker or decode cache."""
    indexes = open_indexes(config)
    plan = Plan(config, indexes)
    reader = build_reader(config, load_tokenizer(config.tokenizer), indexes)
    found: Rows = {}
    cursor = Cursor()
    for step in range(1, steps + 1):
        planned = plan.step(cursor)
        cursor = planned.next_cursor
        for rank, numbers in enumerate(assign_rows(planned.rows, dp_size)):
            for place, number in enumerate(numbers):
                row, bad = reader.read(planned.rows[number])
                assert not bad, bad
                found[step, rank, place] = marks(row, config.image.merge_size**2)
    reader.close()
    return found


def compare_delivered(folder: Path, due: Rows) -> Delivered:
    """Compare what the replicas of a finished run recorded with what was due."""
    came: Rows = {}
    for path in folder.glob("delivered_*.jsonl"):
        rank = int(path.stem.rpartition("_")[2])
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
        came |= {(line["step"], rank, place): row for line in lines for place, row in enumerate(line["rows"])}
    known = {mark for row in due.values() for mark in row}
    missing, unasked = _samples(due) - _samples(came), _samples(came) - _samples(due)
    return Delivered(
        lost=missing.total(),
        repeated=sum(count for (_, mark), count in unasked.items() if mark in known),
        differing=sum(due.get(place) != came.get(place) for place in due.keys() | came.keys()),
        samples=_samples(due).total(),
    )


def _samples(rows: Rows) -> Counter[tuple[int, int]]:
    """(step, mark) -> how often."""
    return Counter((step, mark) for (step, _, _), row in rows.items() for mark in row)
