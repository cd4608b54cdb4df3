"""Runs of which some samples are bad: the step in which the recipe's limits should end them, and the one that did."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from data.config import DataConfig, SourceConfig
from data.encoding.tokenizer import load_tokenizer
from data.errors import BadSamples
from data.formats.shards import write_shards
from data.index.build import build_index
from data.loading.loader import Loader
from data.loading.pool import InThread
from data.loading.rows import ReadStats, RowReader, build_reader, open_indexes
from data.plan.plan import Cursor, Plan, RowPlan, assign_rows, sample_id
from data.types import PackedRow, RawSample
from tests.data.conftest import train_tokenizer

SAMPLES, STEPS = 800, 24  # within one epoch, so that no sample comes twice
FEW = 100


@dataclass(frozen=True, kw_only=True)
class _Limited:
    """Which samples of a replica's stream are bad, by place, and what is allowed."""

    bad: Callable[[int], bool]
    share: float
    in_row: int
    due: bool
    """Whether the run has to stop."""


SHARE = (
    _Limited(bad=lambda n: n % 20 == 3, share=0.04, in_row=1000, due=True),
    _Limited(bad=lambda n: n > 110 and n % 2 == 0, share=0.1, in_row=1000, due=True),
)
IN_ROW = (
    _Limited(bad=lambda n: 33 <= n < 39, share=1.0, in_row=5, due=True),
    _Limited(bad=lambda n: 20 <= n < 45, share=1.0, in_row=24, due=True),  # over several steps
    _Limited(bad=lambda n: n == 50, share=1.0, in_row=0, due=True),
)
ALLOWED = (
    _Limited(bad=lambda n: n % 20 == 3, share=0.07, in_row=1000, due=False),
    _Limited(bad=lambda n: n < 10, share=0.11, in_row=10, due=False),  # a tenth of the first hundred, not of all
    _Limited(bad=lambda n: 33 <= n < 44 and n != 38, share=1.0, in_row=5, due=False),
    _Limited(bad=lambda n: False, share=0.0, in_row=0, due=False),
)


def limit_faults() -> tuple[int, int, int, int]:
    """(runs that went on beyond the step in which the share was passed, the same of bad ones in a row, runs that
    stopped before a limit was passed, runs), each by itself and as the second of two replicas."""
    with tempfile.TemporaryDirectory(prefix="triptych-limits-") as folder:
        config = _config(Path(folder))
        late = [0, 0, 0]
        early = runs = 0
        for kind, group in enumerate((SHARE, IN_ROW, ALLOWED)):
            for limited in group:
                for rank, size in ((0, 1), (1, 2)):
                    due, ended = _run(config, limited, rank, size)
                    assert (due < STEPS) == limited.due, "the case is not what it says"
                    late[kind] += ended > due
                    early += ended < due
                    runs += 1
        return late[0], late[1], early, runs


def _config(folder: Path) -> DataConfig:
    """Steps of about a dozen short texts."""
    train_tokenizer(folder / "tokenizer")
    samples = [
        RawSample(key=f"{n:04d}", content={"parts": [{"type": "text", "text": f" digit {n} moves left"}]}, media={})
        for n in range(SAMPLES)
    ]
    write_shards(folder / "text", "text", samples, samples_per_shard=SAMPLES)
    build_index(folder / "text", load_tokenizer(folder / "tokenizer"), readers=0)
    return DataConfig(
        tokenizer=str(folder / "tokenizer"),
        sources=(SourceConfig(name="text", path=str(folder / "text")),),
        tokens_per_row=32,
        patches_per_row=0,
        rows_per_step=4,
        window=64,
        seed=3,
        workers=0,
    )


class _Marking:
    """Reads, and calls chosen samples bad."""

    def __init__(self, reader: RowReader, bad: set[int]) -> None:
        self._reader = reader
        self._bad = bad

    def read(self, row: RowPlan, bad: Mapping[tuple[int, int], str], uses: Any) -> tuple[PackedRow, list[Any]]:
        chosen = {sample: "chosen" for sample in row.samples if sample_id(*sample) in self._bad}
        return self._reader.read(row, chosen, uses)

    def stats(self) -> ReadStats:
        return self._reader.stats()

    def close(self) -> None:
        self._reader.close()


def _run(config: DataConfig, limited: _Limited, rank: int, size: int) -> tuple[int, int]:
    """(the step in which it should stop, that in which it did), STEPS for neither."""
    indexes = open_indexes(config)
    plan = Plan(config, indexes)
    steps = _stream(plan, rank, size)
    numbers = [number for step in steps for number in step]
    assert len(set(numbers)) == len(numbers) > FEW
    bad = {number for place, number in enumerate(numbers) if limited.bad(place)}
    config = replace(config, bad_share=limited.share, bad_in_row=limited.in_row)
    reader = _Marking(build_reader(config, load_tokenizer(config.tokenizer), indexes), bad)
    loader = Loader(config, plan, InThread(reader), rank, size, Cursor(), lambda _: None)  # type: ignore[arg-type]
    ended = 0
    try:
        while ended < STEPS:
            loader.next_step()
            ended += 1
    except BadSamples:
        pass
    finally:
        loader.close()
    return _due(steps, bad, limited), ended


def _stream(plan: Plan, rank: int, size: int) -> list[list[int]]:
    """Samples of a replica, step after step."""
    cursor, steps = Cursor(), []
    for _ in range(STEPS):
        step = plan.step(cursor)
        cursor = step.next_cursor
        mine = assign_rows(step.rows, size)[rank]
        steps.append([sample_id(*sample) for number in mine for sample in step.rows[number].samples])
    return steps


def _due(steps: list[list[int]], bad: set[int], limited: _Limited) -> int:
    """The first step that has a bad sample and after which a limit is passed, by counting anew at each."""
    for number, step in enumerate(steps):
        seen = [sample in bad for before in steps[: number + 1] for sample in before]
        longest = max((len(list(same)) for is_bad, same in groupby(seen) if is_bad), default=0)
        over = len(seen) >= FEW and sum(seen) / len(seen) > limited.share
        if longest > limited.in_row or (over and any(sample in bad for sample in step)):
            return number
    return STEPS
