"""Which samples are in step s: arithmetic on (indexes, seed, budgets, s), equal on every host and for every layout."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from data.config import DataConfig, ImageConfig, VideoConfig
from data.encode import media_grid
from data.errors import BudgetError, MismatchError, SampleError
from data.index_file import Index
from data.packing import pack
from data.permutation import order_key, permute
from data.types import Int64, MediaSize

PLAN_VERSION = 2  # 2: clips are thinned where max_tokens leaves a temporal patch less than 4 tokens
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

    def __init__(self, config: DataConfig, indexes: Sequence[Index]) -> None:
        if len(indexes) != len(config.sources):
            raise MismatchError(f"{len(config.sources)} sources are configured but {len(indexes)} indexes were given")
        self.config = config
        self.shares = window_shares(config)
        self.sizes = [len(index) for index in indexes]
        lengths = [sample_lengths(index, config.image, config.video) for index in indexes]
        for source, index, (tokens, patches) in zip(config.sources, indexes, lengths, strict=True):
            _check_budgets(config, source.name, index, tokens, patches)
        self._tokens = [tokens for tokens, _ in lengths]
        self._patches = [patches for _, patches in lengths]
        self.identity = _identity(config, indexes)
        text = json.dumps(self.identity, sort_keys=True)
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self._rows = lru_cache(maxsize=4)(self._plan_window)

    def step(self, cursor: Cursor) -> StepPlan:
        """The `rows_per_step` rows from `cursor` on."""
        window, row = cursor.window, cursor.row
        rows: list[RowPlan] = []
        while len(rows) < self.config.rows_per_step:
            planned = self._rows(window)
            assert row <= len(planned), (cursor, len(planned))
            taken = planned[row : row + self.config.rows_per_step - len(rows)]
            rows.extend(taken)
            row += len(taken)
            if row == len(planned):
                window, row = window + 1, 0
        return StepPlan(rows=tuple(rows), next_cursor=Cursor(window=window, row=row))

    def num_tokens(self, source_id: int, index: int) -> int:
        """Length of one sample, visual tokens included."""
        return int(self._tokens[source_id][index])

    def window_samples(self, window: int) -> list[tuple[int, int]]:
        """(source id, index) of the samples of a window; sources are interleaved by stride."""
        slots = []
        for source_id, (source, count) in enumerate(zip(self.config.sources, self.shares, strict=True)):
            order = endless_order(self.config.seed, source.name, self.sizes[source_id], window * count, count)
            # Exact fractions: sources of equal share would otherwise meet in rounding and depend on the platform.
            slots += [(Fraction(2 * n + 1, 2 * count), source_id, index) for n, index in enumerate(order.tolist())]
        return [(source_id, index) for _, source_id, index in sorted(slots, key=lambda slot: slot[:2])]

    def _plan_window(self, window: int) -> tuple[RowPlan, ...]:
        samples = self.window_samples(window)
        tokens = [int(self._tokens[source_id][index]) for source_id, index in samples]
        patches = [int(self._patches[source_id][index]) for source_id, index in samples]
        packed = pack(tokens, patches, self.config.tokens_per_row, self.config.patches_per_row)
        # Packing puts long samples into the first rows; a keyed order spreads them over the steps.
        order = permute(np.arange(len(packed)), len(packed), order_key(self.config.seed, "rows", window))
        return tuple(
            RowPlan(
                samples=tuple(samples[i] for i in packed[row]),
                num_tokens=sum(tokens[i] for i in packed[row]),
                num_patches=sum(patches[i] for i in packed[row]),
                cost=sum(_cost(tokens[i], patches[i]) for i in packed[row]),
            )
            for row in order.tolist()
        )


def assign_rows(rows: Sequence[RowPlan], dp_size: int) -> list[list[int]]:
    """Row numbers of each replica, ascending: equal counts, the costliest row first to the least loaded replica.

    Raises ValueError if dp_size does not divide the number of rows.
    """
    if dp_size < 1 or len(rows) % dp_size:
        raise ValueError(
            f"data.rows_per_step is {len(rows)}, which dp size {dp_size} does not divide; "
            f"set it to a multiple of {dp_size} or change the layout"
        )
    assigned: list[list[int]] = [[] for _ in range(dp_size)]
    loads = [0] * dp_size
    for number in sorted(range(len(rows)), key=lambda n: (-rows[n].cost, n)):
        open_replicas = [rank for rank in range(dp_size) if len(assigned[rank]) < len(rows) // dp_size]
        rank = min(open_replicas, key=lambda r: (loads[r], r))
        assigned[rank].append(number)
        loads[rank] += rows[number].cost
    return [sorted(numbers) for numbers in assigned]


def window_shares(config: DataConfig) -> list[int]:
    """Samples of each source in a window, by largest remainder. Raises BudgetError if a source would get none."""
    weights = [Fraction(source.weight) for source in config.sources]
    exact = [weight / sum(weights) * config.window for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: config.window - sum(shares)]:
        shares[i] += 1
    empty = [(s.name, s.weight) for s, share in zip(config.sources, shares, strict=True) if share == 0]
    if empty:
        raise BudgetError(
            f"a window of {config.window} samples has none of {empty} (name, weight; all weights sum to "
            f"{float(sum(weights))}); raise data.window or their weights, or leave them out"
        )
    return shares


def endless_order(seed: int, name: str, size: int, start: int, count: int) -> Int64:
    """Samples start .. start+count-1 of a source's endless sequence: one permutation after another."""
    places = np.arange(start, start + count, dtype=np.int64)
    epochs = places // size
    order = np.empty_like(places)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if count else ():
        chosen = epochs == epoch
        order[chosen] = permute(places[chosen] % size, size, order_key(seed, name, epoch))
    return order


def sample_lengths(index: Index, image: ImageConfig, video: VideoConfig) -> tuple[Int64, Int64]:
    """(tokens, patches) of every sample of an index, by the pure size functions. Raises BudgetError."""
    ends = np.asarray(index.columns["media_end"]).astype(np.int64)
    media = np.stack(
        [
            np.asarray(index.columns[f"media_{name}"], dtype=np.float64)
            for name in ("kind", "height", "width", "frames", "fps")
        ]
    )
    if not media.shape[1]:
        return np.asarray(index.columns["num_text_tokens"]).astype(np.int64), np.zeros(len(index), dtype=np.int64)
    # Few distinct sizes stand for many samples, so the scalar rules are enough and cannot differ from the loader's.
    distinct, which = np.unique(media, axis=1, return_inverse=True)
    first = np.zeros(distinct.shape[1], dtype=np.int64)
    first[which.reshape(-1)[::-1]] = np.arange(media.shape[1])[::-1]
    patches = np.empty(distinct.shape[1], dtype=np.int64)
    for n, row in enumerate(first.tolist()):
        size: MediaSize = index.media_size(row)
        try:
            patches[n] = media_grid(size, image, video).num_patches
        except SampleError as error:
            number = int(np.searchsorted(ends, row, side="right"))
            raise BudgetError(f"sample {number} at {index.where(number)}: {error}") from None
    totals = np.concatenate([[0], np.cumsum(patches[which.reshape(-1)])])
    per_sample = totals[ends] - totals[np.concatenate([[0], ends[:-1]])]
    tokens = np.asarray(index.columns["num_text_tokens"]).astype(np.int64) + per_sample // image.merge_size**2
    return tokens, per_sample


def check_same_plan(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on with another order of samples: compares two `Plan.identity`, raises MismatchError."""
    wrong = [
        f"{key} was {saved.get(key)!r} and is {current.get(key)!r}"
        for key in sorted({*saved, *current})
        if saved.get(key) != current.get(key)
    ]
    if wrong:
        raise MismatchError(f"the data is not that of the checkpoint: {'; '.join(wrong)}")


def _identity(config: DataConfig, indexes: Sequence[Index]) -> dict[str, Any]:
    """All that decides the order of samples and their lengths; paths, prefetch, deadlines and caches do not."""
    video = asdict(config.video)
    for key in ("timeout_seconds", "timeout_per_second", "memory_bytes", "cache_dir", "cache_bytes"):
        del video[key]
    sources = [[s.name, s.weight, index.digest] for s, index in zip(config.sources, indexes, strict=True)]
    budgets = {
        key: getattr(config, key) for key in ("tokens_per_row", "patches_per_row", "rows_per_step", "window", "seed")
    }
    return {"version": PLAN_VERSION, "sources": sources, "image": asdict(config.image), "video": video, **budgets}


def _check_budgets(config: DataConfig, name: str, index: Index, tokens: Int64, patches: Int64) -> None:
    too_long = np.flatnonzero((tokens > config.tokens_per_row) | (patches > config.patches_per_row))
    if too_long.size:
        worst = int(too_long[0])
        needs = {"tokens_per_row": int(tokens.max()), "patches_per_row": int(patches.max())}
        raised = [f"data.{key} to {need}" for key, need in needs.items() if need > getattr(config, key)]
        raise BudgetError(
            f"source {name!r}: {too_long.size} of {len(index)} samples do not fit a row, the first is sample "
            f"{worst} at {index.where(worst)} with {tokens[worst]} tokens and {patches[worst]} patches (a row takes "
            f"{config.tokens_per_row} and {config.patches_per_row}); raise {' and '.join(raised)}, or lower max_pixels"
        )


def _cost(tokens: int, patches: int) -> int:
    # Ours: linear work dominates below about 8k tokens at these widths; a patch costs about half a token.
    return tokens * (8192 + tokens) + patches * 4096
