"""What a run's folder tells of the run, read for a page: metrics, saves, quarantine, starts, evaluations.

Nothing of it is believed: the folder may have come from elsewhere, may be cut short, and names in it are a user's. What
is no number is nan, what is no line is counted and left out.
"""

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.checkpoint.commits import newest_readable
from train.ending import Ending, read_ending

Floats = NDArray[np.float64]
_PLAIN = (
    "time", "loss", "grad_norm", "tokens", "samples", "tokens_per_second", "step_seconds", "data_seconds", "bubble",
    "mfu", "bad_samples", "load_spread", "visual_load_spread", "microbatch_visual_spread", "replica_drift",
    "store_retries",
)  # fmt: skip
_MOST_NAMES = 64  # of sources, parts; a file that has more is not one of ours
_MOST_RECORDS = 10_000  # of quarantine and the like that are kept
_SUMMED = ("samples", "tokens", "targets")


@dataclass(kw_only=True)
class Story:
    """One run."""

    folder: Path
    stage: str = ""
    steps: Floats = field(default_factory=lambda: np.empty(0))
    """(N,), ascending; so are the columns."""
    columns: dict[str, Floats] = field(default_factory=dict)
    """By name; of nested ones as sources/NAME/loss. nan where a step has none."""
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    """Samples, tokens and targets of each, over all steps."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    saves: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    ending: Ending | None = None
    recipe: str = ""
    """Of the newest checkpoint, YAML."""
    broken: int = 0
    """Lines that could not be read."""

    def column(self, name: str) -> Floats:
        """All nan if the run has none."""
        return self.columns.get(name, np.full(len(self.steps), np.nan))

    def nested(self, before: str, after: str = "") -> dict[str, Floats]:
        """Columns `before/NAME/after`, by NAME."""
        ends = f"/{after}" if after else ""
        return {
            name[len(before) + 1 : len(name) - len(ends)]: values
            for name, values in self.columns.items()
            if name.startswith(f"{before}/") and name.endswith(ends)
        }

    @property
    def seconds(self) -> float:
        """In steps, over all starts."""
        return float(np.nansum(self.column("step_seconds")))


def read_story(folder: str | Path) -> Story:
    """Read a run's folder. Raises ValueError if there is no metrics.jsonl in it."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder} has no metrics.jsonl; name the folder of a run (run_dir) that has begun")
    story = Story(folder=folder)
    _read_steps(story)
    for name in ("skipped", "saves", "starts", "evaluations"):
        setattr(story, name, _records(story, folder / f"{name}.jsonl"))
    for path in sorted(folder.glob("quarantine_*.jsonl")):
        story.quarantine += _records(story, path)
    try:
        story.ending = read_ending(folder)
        commit = newest_readable(folder)
        story.recipe = commit.recipe if commit is not None else ""
    except (OSError, ValueError, KeyError, TypeError):  # a damaged folder still has its curves
        story.broken += 1
    return story


def number(value: Any) -> float:
    """What a line says as a number; nan for anything else."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan


def text(value: Any, most: int = 2000) -> str:
    """What a line says as a text of bounded length."""
    shown = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return shown if len(shown) <= most else shown[:most] + " ..."


class _Columns:
    """Columns that grow by steps; a step that comes again is written over."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._columns: dict[str, array[float]] = {}

    def put(self, step: int, values: Mapping[str, float]) -> None:
        place = self._places.setdefault(step, len(self._places))
        for name, value in values.items():
            column = self._columns.setdefault(name, array("d"))
            column.extend([math.nan] * (place + 1 - len(column)))
            column[place] = value

    def sorted(self) -> tuple[Floats, dict[str, Floats]]:
        steps = np.array(list(self._places), dtype=np.float64)
        order = np.argsort(steps)
        found = {}
        for name, column in self._columns.items():
            column.extend([math.nan] * (len(steps) - len(column)))
            found[name] = np.array(column)[order]
        return steps[order], found


def _read_steps(story: Story) -> None:
    columns, known = _Columns(), set(_PLAIN)
    counts: dict[str, dict[int, tuple[int, ...]]] = {}
    for row in _lines(story, story.folder / "metrics.jsonl"):
        step = number(row.get("step"))
        if not (step >= 0 and step == int(step)):
            story.broken += 1
            continue
        story.stage = text(row.get("stage"), 80) or story.stage
        flat = {name: number(row[name]) for name in _PLAIN if name in row}
        flat["skipped"] = float(row.get("skipped") is not None)
        for kind in ("part_norms", "rates", "sources"):
            for name, value in _named(row.get(kind)):
                key = f"{kind}/{name}" + ("/loss" if kind == "sources" else "")
                if kind == "sources" and isinstance(value, dict):
                    counts.setdefault(name, {})[int(step)] = tuple(_count(value.get(each)) for each in _SUMMED)
                    value = value.get("loss")
                if key in known or len(known) < len(_PLAIN) + 3 * _MOST_NAMES:
                    known.add(key)
                    flat[key] = number(value)
        columns.put(int(step), flat)
    story.steps, story.columns = columns.sorted()
    for name, of_steps in list(counts.items())[:_MOST_NAMES]:
        sums = [sum(column) for column in zip(*of_steps.values(), strict=True)]
        story.sources[name] = dict(zip(_SUMMED, sums, strict=True))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 60 else 0


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(name)[:200], inner) for name, inner in list(value.items())[:_MOST_NAMES])


def _records(story: Story, path: Path) -> list[dict[str, Any]]:
    found = []
    for place, record in enumerate(_lines(story, path)):
        if place == _MOST_RECORDS:
            break
        found.append(record)
    return found


def _lines(story: Story, path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            else:
                story.broken += 1
