"""What it takes to go on in an epoch of millions of samples: from files on disk to the first rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig, SourceConfig
from data.encoding.tokenizer import load_tokenizer
from data.index.build import open_index
from data.index.file import COLUMNS, Index, write_index
from data.loading.loader import Loader
from data.loading.pool import open_readers
from data.loading.rows import open_indexes
from data.plan.plan import Cursor, Plan, RowPlan
from tests.harness.runs import data_config, make_data

WINDOW = 65536
SETTLED_SECONDS = 1.0  # without another request
MOST_SECONDS = 60.0  # until the readers wait, before what they have read is taken for what they will


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A loader that was begun at some step."""

    opened: float
    """Seconds of reading and checking the index and the tokenizer."""
    planned: float
    """Seconds of the lengths of every sample."""
    read: float
    """Seconds from there to the first step's rows: its windows planned, readers started, rows read and packed."""
    requests_off: int
    """Requests that were made beyond those of the rows that were read, or the other way round."""
    bytes_off: int
    others: int
    """Samples of the first step that are not those planned."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.opened + self.planned + self.read

    @property
    def split(self) -> str:
        """Where they went."""
        return f"{self.opened:.2f} index, {self.planned:.2f} lengths, {self.read:.2f} window and rows"


def large_source(folder: Path, samples: int) -> DataConfig:
    """An index of so many samples, all of them copies of forty that lie in real shards."""
    small = data_config(make_data(folder))
    index = open_index(small.sources[0].path)
    copies = -(-samples // len(index))
    columns: dict[str, Any] = {name: np.tile(index.columns[name], copies) for name in COLUMNS}
    media = len(index.columns["media_kind"])
    columns["media_end"] += np.repeat(np.arange(copies, dtype=np.uint64) * np.uint64(media), len(index))
    of_samples = [name for name in COLUMNS if not name.startswith("media_") or name == "media_end"]
    columns |= {name: columns[name][:samples] for name in of_samples}
    last = int(columns["media_end"][-1])
    columns |= {name: columns[name][:last] for name in COLUMNS if name not in of_samples}
    meta = {key: value for key, value in index.meta.items() if key not in ("version", "shards", "columns")}
    write_index(folder / "large", meta, index.shards, columns)
    source = SourceConfig(name="large", path=small.sources[0].path, index=str(folder / "large"))
    return replace(small, sources=(source,), tokens_per_row=1024, patches_per_row=4096, rows_per_step=8, window=WINDOW)


def awkward_cursors(config: DataConfig) -> dict[str, Cursor]:
    """The first step of an epoch, one in its middle, and the last one of its last window, which needs two windows."""
    indexes = open_indexes(config)
    plan = Plan(config, indexes)
    windows = len(indexes[0]) // config.window
    cursor = Cursor(window=windows)
    while (following := plan.step(cursor).next_cursor).window == windows:
        cursor = following
    return {"start": Cursor(), "middle": Cursor(window=windows // 2, row=13), "end": cursor}


def resume_at(config: DataConfig, cursor: Cursor) -> Resumed:
    """What a trainer does before its first step, timed."""
    times = [time.perf_counter()]
    tokenizer = load_tokenizer(config.tokenizer)
    indexes = open_indexes(config)
    looked = (indexes[0].store.stats().requests, indexes[0].store.stats().bytes)
    times.append(time.perf_counter())
    plan = Plan(config, indexes)
    times.append(time.perf_counter())
    loader = Loader(config, plan, open_readers(config, tokenizer, indexes), 0, 1, cursor, lambda _: None)
    try:
        _, rows = loader.next_step()
        times.append(time.perf_counter())
        due = np.cumsum(_needs(plan, cursor, 3 + config.prefetch_steps, indexes[0]), axis=0)[len(rows) - 1 :]
        if config.workers == 0:  # read by the process that has looked into the shards at its start
            due = due + looked
        off = _settled(loader, due)
    finally:
        loader.close()
    opened, planned, read = (after - before for before, after in pairwise(times))
    came = np.concatenate([row.sample_ids for row in rows]).tolist()
    return Resumed(
        opened=opened,
        planned=planned,
        read=read,
        requests_off=off[0],
        bytes_off=off[1],
        others=sum(one != two for one, two in zip_longest(_numbers(plan.step(cursor).rows), came)),
    )


def _settled(loader: Loader, due: NDArray[np.int64]) -> tuple[int, int]:
    """By how much (requests, bytes) differ from what whole rows need, once the readers wait for the trainer.

    Args:
        due: what the first rows need together, one more in each line; readers read them in this order.
    """
    found, since, ends = (-1, -1), time.monotonic(), time.monotonic() + MOST_SECONDS
    while True:
        time.sleep(0.1)
        store = loader.stats().store
        if (store.requests, store.bytes) != found:
            found, since = (store.requests, store.bytes), time.monotonic()
        off = np.abs(due - np.array(found))
        nearest = off[off[:, 1].argmin()]
        settled = time.monotonic() - since > SETTLED_SECONDS
        if (settled and not nearest.any()) or time.monotonic() > ends:
            return int(nearest[0]), int(nearest[1])


def _numbers(rows: Sequence[RowPlan]) -> list[int]:
    return [number for row in rows for _, number in row.samples]


def _needs(plan: Plan, cursor: Cursor, steps: int, index: Index) -> list[tuple[int, int]]:
    """(requests, bytes) of each row from a cursor on."""
    rows: list[RowPlan] = []
    for _ in range(steps):
        step = plan.step(cursor)
        rows += step.rows
        cursor = step.next_cursor
    return [_row_needs(_numbers([row]), index) for row in rows]


def _row_needs(numbers: list[int], index: Index) -> tuple[int, int]:
    """Samples that lie side by side and come one after the other are one request."""
    beside = sum(two == one + 1 and index.run_from(one, 2) == 2 for one, two in pairwise(numbers))
    return len(numbers) - beside, int(index.columns["nbytes"][numbers].sum())
