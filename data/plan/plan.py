"""Which samples are in step s: arithmetic on (indexes, seed, budgets, s), equal on every host and for every layout."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from data.config import DataConfig
from data.errors import MismatchError
from data.plan.lengths import source_lengths
from data.plan.order import check_runs, cut_runs, interleave, next_window, samples_at, window_shares
from data.plan.packing import pack
from data.plan.permutation import order_key, permute
from data.plan.used import Drawn, Used, drawn_after, used_digest, window_places
from data.types import Int64, SampleIndex

PLAN_VERSION = 3  # 3: budgets may shrink samples, and runs of samples may be packed as one
_ITEMS_A_ROW = 8
_INDEX_BITS = 40  # a source may have 2**40 samples, and there may be 2**23 sources, in a signed 64-bit id


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The next row to train on. Two integers, the whole state of the data."""

    window: int = 0
    row: int = 0

    def to_dict(self) -> dict[str, int]:
        """For the checkpoint."""
        return {"window": self.window, "row": self.row}

    @classmethod
    def from_dict(cls, saved: Mapping[str, int]) -> "Cursor":
        """Inverse of `to_dict`."""
        return cls(window=int(saved["window"]), row=int(saved["row"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPlan:
    """The samples of one row as (source id, sample index in the source), with what they will take."""

    samples: tuple[tuple[int, int], ...]
    num_tokens: int
    num_patches: int
    cost: int
    """Estimated work in arbitrary units, to balance rows over replicas."""
    window: int = 0
    caps: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Samples that had to be shrunk -> visual tokens that each of their pictures and clips may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """The rows of one step, and where the next step begins."""

    rows: tuple[RowPlan, ...]
    next_cursor: Cursor

    def digest(self) -> str:
        """blake2b-128 over the sorted sample ids: equal for every layout that trains on the same samples."""
        ids = np.sort(np.array([sample_id(*sample) for row in self.rows for sample in row.samples], dtype="<i8"))
        return hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()


def sample_id(source_id: int, index: int) -> int:
    """One integer for a sample of the whole mixture."""
    assert 0 <= index < 1 << _INDEX_BITS
    return (source_id << _INDEX_BITS) | index


class Plan:
    """Rows of any step. Holds 16 bytes for each sample; every rank computes all of it, so nothing is communicated."""

    def __init__(self, config: DataConfig, indexes: Sequence[SampleIndex], used: Used | None = None) -> None:
        """`used`: how far earlier segments of the run have used sources, these and others. Raises BudgetError."""
        if len(indexes) != len(config.sources):
            raise MismatchError(f"{len(config.sources)} sources are configured but {len(indexes)} indexes were given")
        self.config = config
        self.sizes = [len(index) for index in indexes]
        check_runs(config, self.sizes)
        self._lengths = [source_lengths(config, n, index) for n, index in enumerate(indexes)]
        self._shrinks = any(lengths.caps for lengths in self._lengths)
        self.shares = window_shares(config, [lengths.tokens for lengths in self._lengths])
        self._slots = interleave(self.shares)
        self.used = used or {}
        self._drawn = [self.used.get(source.name, Drawn()) for source in config.sources]
        self.identity = plan_identity(config, indexes, self.used)
        text = json.dumps(self.identity, sort_keys=True)
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._window = lru_cache(maxsize=4)(self._plan_window)

    def step(self, cursor: Cursor) -> StepPlan:
        """The `rows_per_step` rows from `cursor` on."""
        window, row = cursor.window, cursor.row
        rows: list[RowPlan] = []
        while len(rows) < self.config.rows_per_step:
            planned = self._window(window)
            assert row <= planned.num_rows, (cursor, planned.num_rows)
            stop = min(planned.num_rows, row + self.config.rows_per_step - len(rows))
            rows.extend(self._row(planned, window, number) for number in range(row, stop))
            row = stop
            if row == planned.num_rows:
                window, row = window + 1, 0
        return StepPlan(rows=tuple(rows), next_cursor=Cursor(window=window, row=row))

    def used_at(self, cursor: Cursor) -> Used:
        """How far all sources are used once the rows before `cursor` are."""
        unused = None
        if cursor.row:
            planned = self._window(cursor.window)
            unused = self._slots[planned.slots[planned.starts[cursor.row] :]]
        drawn = drawn_after(self._drawn, self.shares, cursor.window, unused)
        return {**self.used, **{s.name: each for s, each in zip(self.config.sources, drawn, strict=True)}}

    def cursor_after(self, steps: int) -> Cursor:
        """Where the plan is after so many steps from its beginning. Packs every window up to there."""
        window, rows = 0, steps * self.config.rows_per_step
        while rows >= (held := self._window(window).num_rows):
            window, rows = window + 1, rows - held
        return Cursor(window=window, row=rows)

    def uses(self, row: RowPlan) -> dict[tuple[int, int], tuple[int, int]]:
        """Samples of a row with pictures or clips -> the window that reads them now, and the next one that will."""
        found = {}
        for source_id, index in row.samples:
            if self._lengths[source_id].patches[index]:
                source, size, share = self.config.sources[source_id], self.sizes[source_id], self.shares[source_id]
                # A place that an earlier segment left is not looked for: the cache asks for a hint.
                drawn, run_length = self._drawn[source_id], self.config.run_length
                ahead = {"first": drawn.count, "held": len(drawn.left)}
                again = next_window(self.config.seed, source.name, size, share, index, row.window, run_length, **ahead)
                found[source_id, index] = row.window, again
        return found

    def rows_of_window(self, window: int) -> int:
        """How many rows the samples of a window fill."""
        return self._window(window).num_rows

    def num_tokens(self, source_id: int, index: int) -> int:
        """Length of one sample, visual tokens included."""
        return int(self._lengths[source_id].tokens[index])

    def window_samples(self, window: int) -> Int64:
        """(source id, index) of the samples of a window, int64 (window, 2); sources are interleaved by stride."""
        places = np.split(window_places(self._drawn, self.shares, window), np.cumsum(self.shares)[:-1])
        orders = [
            samples_at(self.config.seed, source.name, size, taken, self.config.run_length)
            for source, size, taken in zip(self.config.sources, self.sizes, places, strict=True)
        ]
        return np.stack((np.repeat(np.arange(len(orders)), self.shares), np.concatenate(orders)), axis=1)[self._slots]

    def _plan_window(self, window: int) -> "_Window":
        samples = self.window_samples(window)
        tokens, patches = np.empty(len(samples), dtype=np.int64), np.empty(len(samples), dtype=np.int64)
        for source_id, lengths in enumerate(self._lengths):
            chosen = samples[:, 0] == source_id
            tokens[chosen] = lengths.tokens[samples[chosen, 1]]
            patches[chosen] = lengths.patches[samples[chosen, 1]]
        items = self._items(samples, tokens, patches)
        packed = pack(
            np.bincount(items, tokens).astype(np.int64),
            np.bincount(items, patches).astype(np.int64),
            self.config.tokens_per_row,
            self.config.patches_per_row,
        )
        num_rows = int(packed.max()) + 1
        # Packing puts long samples into the first rows; a keyed order spreads them over the steps.
        place = np.empty(num_rows, dtype=np.int64)
        place[permute(np.arange(num_rows), num_rows, order_key(self.config.seed, "rows", window))] = np.arange(num_rows)
        row_of = place[packed[items]]
        order = np.lexsort((np.arange(len(items)), items, row_of))
        starts = np.searchsorted(row_of[order], np.arange(num_rows))
        sums = (np.add.reduceat(values[order], starts) for values in (tokens, patches, _cost(tokens, patches)))
        return _Window(samples[order], order, np.append(starts, len(order)), *sums)

    def _items(self, samples: Int64, tokens: Int64, patches: Int64) -> Int64:
        """What is packed as one: the number of each sample's item. Items are numbered by their first sample.

        A run of samples that lie side by side is one item as far as it fills no more than an eighth of a row, which
        costs almost no fill and lets one request read it.
        """
        if self.config.run_length == 1:
            return np.arange(len(samples))
        slots = np.lexsort((np.arange(len(samples)), samples[:, 0]))  # sources apart, each in its own order
        source, index = samples[slots].T
        new = np.ones(len(slots), dtype=bool)
        new[1:] = (
            (source[1:] != source[:-1]) | (index[1:] != index[:-1] + 1) | (index[1:] % self.config.run_length == 0)
        )
        limits = self.config.tokens_per_row // _ITEMS_A_ROW, self.config.patches_per_row // _ITEMS_A_ROW
        first = np.flatnonzero(cut_runs(new, tokens[slots], patches[slots], *limits))
        items = np.empty(len(slots), dtype=np.int64)
        items[slots] = np.repeat(np.argsort(np.argsort(slots[first])), np.diff(np.append(first, len(slots))))
        return items

    def _row(self, planned: "_Window", window: int, number: int) -> RowPlan:
        start, stop = planned.starts[number : number + 2]
        # Millions of samples pass here: tuples by zip, and no look for caps where no sample has one.
        samples = tuple(zip(*planned.samples[start:stop].T.tolist(), strict=True))
        shrunk = samples if self._shrinks else ()
        caps = [(self._lengths[source].caps.get(index), source, index) for source, index in shrunk]
        return RowPlan(
            samples=samples,
            num_tokens=int(planned.tokens[number]),
            num_patches=int(planned.patches[number]),
            cost=int(planned.cost[number]),
            window=window,
            caps={(source, index): cap for cap, source, index in caps if cap is not None},
        )


class _Window(NamedTuple):
    """The rows of one window, one after the other."""

    samples: Int64
    """(N, 2), source id and index"""
    slots: Int64
    """(N,), which of the window each sample is"""
    starts: Int64
    """(rows + 1,)"""
    tokens: Int64
    """(rows,), and so are the next two"""
    patches: Int64
    cost: Int64

    @property
    def num_rows(self) -> int:
        return len(self.tokens)


def assign_rows(rows: Sequence[RowPlan], dp_size: int) -> list[list[int]]:
    """Row numbers of each replica, ascending: the costliest row first to the least loaded replica.

    Counts are equal, or differ by one where dp_size does not divide the number of rows, which is that of the recipe
    whatever the layout. Raises ValueError if a replica would have none.
    """
    if dp_size < 1 or 0 < len(rows) < dp_size:
        raise ValueError(
            f"a step has {len(rows)} rows (data.rows_per_step), which leaves none for some of {dp_size} replicas; "
            "start fewer, or split the model over more of them (parallel.tensor, parallel.pipeline)"
        )
    assigned: list[list[int]] = [[] for _ in range(dp_size)]
    loads = [0] * dp_size
    least, more = divmod(len(rows), dp_size)  # `more` replicas have one beyond the least
    for number in sorted(range(len(rows)), key=lambda n: (-rows[n].cost, n)):
        most = least + (more > 0)
        rank = min((rank for rank in range(dp_size) if len(assigned[rank]) < most), key=lambda r: (loads[r], r))
        more -= len(assigned[rank]) == least
        assigned[rank].append(number)
        loads[rank] += rows[number].cost
    return [sorted(numbers) for numbers in assigned]


def spread(loads: Sequence[float]) -> float:
    """How much more than the mean the most loaded one has; 0 if all have the same, or nothing."""
    return max(loads) * len(loads) / sum(loads) - 1 if sum(loads) else 0.0


def plan_identity(config: DataConfig, indexes: Sequence[SampleIndex], used: Used) -> dict[str, Any]:
    """All that decides the order of samples and their lengths; paths, prefetch, deadlines and caches do not."""
    video = asdict(config.video)
    for key in ("timeout_seconds", "timeout_per_second", "memory_bytes", "cache_dir", "cache_bytes"):
        del video[key]
    sources = [[s.name, s.weight, index.digest] for s, index in zip(config.sources, indexes, strict=True)]
    budgets = {
        key: getattr(config, key) for key in ("tokens_per_row", "patches_per_row", "rows_per_step", "window", "seed")
    } | {key: getattr(config, key) for key in ("weights_are", "run_length", "too_long")}
    begun = {"used": used_digest(used)} if used else {}
    parts = {"version": PLAN_VERSION, "sources": sources, "image": asdict(config.image), "video": video}
    identity: dict[str, Any] = json.loads(json.dumps(parts | budgets | begun))  # lists, as a checkpoint has them
    return identity


def _cost(tokens: Int64, patches: Int64) -> Int64:
    # Ours: linear work dominates below about 8k tokens at these widths; a patch costs about half a token.
    return tokens * (8192 + tokens) + patches * 4096
