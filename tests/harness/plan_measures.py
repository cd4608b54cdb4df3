"""What a plan of millions of samples costs and holds, from lengths alone."""

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.config import DataConfig, ImageConfig, SourceConfig
from data.encoding.encode import media_grid
from data.plan.lengths import capped, sample_lengths, source_lengths
from data.plan.plan import Cursor, Plan, assign_rows, spread
from data.types import MediaSize

ROW_TOKENS, ROW_PATCHES = 32768, 131072


class LengthsAlone:
    """An index of random captions and pictures, log-normal as in web data, without shards."""

    def __init__(self, size: int, seed: int, pictures: float = 0.7) -> None:
        generator = np.random.default_rng(seed)
        text = np.minimum(3000, generator.lognormal(4.5, 1.0, size).astype(np.uint32)) + 1
        pictured = generator.random(size) < pictures
        sides = generator.integers(200, 1200, (2, int(pictured.sum()))).astype(np.uint32)
        self.digest = f"{size} {seed}"
        self.columns: dict[str, Any] = {
            "num_text_tokens": text,
            "media_end": np.cumsum(pictured).astype(np.uint64),
            "media_kind": np.zeros(sides.shape[1], dtype=np.uint8),
            "media_height": sides[0],
            "media_width": sides[1],
            "media_frames": np.ones(sides.shape[1], dtype=np.uint32),
            "media_fps": np.zeros(sides.shape[1]),
        }

    def __len__(self) -> int:
        return len(self.columns["num_text_tokens"])

    def media_size(self, row: int) -> MediaSize:
        height, width = int(self.columns["media_height"][row]), int(self.columns["media_width"][row])
        return MediaSize(kind="image", height=height, width=width)

    def media_sizes(self, i: int) -> list[MediaSize]:
        ends = self.columns["media_end"]
        return [self.media_size(row) for row in range(int(ends[i - 1]) if i else 0, int(ends[i]))]

    def where(self, i: int) -> str:
        return f"sample {i}"


def config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "tokenizer": "",
        "sources": (SourceConfig(name="a", path="", weight=4.0), SourceConfig(name="b", path="")),
        "tokens_per_row": ROW_TOKENS,
        "patches_per_row": ROW_PATCHES,
        "rows_per_step": 64,
        "window": 65536,
        "seed": 0,
        **changes,
    }
    return DataConfig(**values)


@dataclass(frozen=True, kw_only=True)
class Large:
    """A plan of ten million samples."""

    ready_seconds: float
    """From the columns to the first step after a jump into the middle of the epoch."""
    seconds_a_million: float
    """Of samples planned, step after step."""
    empty: float
    """Share of the tokens that rows have room for and do not hold."""
    cursor_bytes: int


def plan_ten_million(samples: int = 2_000_000) -> Large:
    """Measured over so many samples of a fifth and four fifths of ten million."""
    indexes = [LengthsAlone(8_000_000, 0), LengthsAlone(2_000_000, 1)]
    Plan(config(), [LengthsAlone(1000, 2)] * 2).step(Cursor())  # compiles
    started = time.perf_counter()
    plan = Plan(config(), indexes)
    step = plan.step(Cursor(window=77, row=13))
    ready = time.perf_counter() - started
    planned = tokens = rows = 0
    started = time.process_time()
    while planned < samples:
        step = plan.step(step.next_cursor)
        planned += sum(len(row.samples) for row in step.rows)
        tokens += sum(row.num_tokens for row in step.rows)
        rows += len(step.rows)
    seconds = time.process_time() - started
    return Large(
        ready_seconds=ready,
        seconds_a_million=seconds / planned * 1e6,
        empty=1 - tokens / (rows * ROW_TOKENS),
        cursor_bytes=len(json.dumps(step.next_cursor.to_dict())),
    )


def plan_faults(run_length: int) -> dict[str, float]:
    """Three epochs of two small sources: samples missing or twice, budgets passed, shares missed, steps that differ."""
    sizes = (20_011, 5_003)
    indexes = [LengthsAlone(size, seed) for seed, size in enumerate(sizes)]
    small = config(window=4096, rows_per_step=8, run_length=run_length, patches_per_row=65536)  # pictures fill rows
    plan = Plan(small, indexes)
    lengths = [sample_lengths(index, small.image, small.video) for index in indexes]  # type: ignore[arg-type]
    seen: list[list[int]] = [[], []]
    over = off = parted = 0
    cursor = Cursor()
    window = 0
    while min(len(one) / size for one, size in zip(seen, sizes, strict=True)) < 3:
        step = plan.step(cursor)
        alone = Plan(small, indexes).step(cursor) if window % 4 == 0 and cursor.row == 0 else step
        parted += alone.digest() != step.digest()
        for row in step.rows:
            tokens = sum(int(lengths[s][0][i]) for s, i in row.samples)
            patches = sum(int(lengths[s][1][i]) for s, i in row.samples)
            over += tokens > small.tokens_per_row or patches > small.patches_per_row or tokens != row.num_tokens
        for size in (2, 4, 8):
            shared = [number for numbers in assign_rows(step.rows, size) for number in numbers]
            parted += sorted(shared) != list(range(len(step.rows)))
        if cursor.window != window or not seen[0]:
            window = cursor.window
            samples = plan.window_samples(window)
            off += sum(int((samples[:, 0] == n).sum()) != share for n, share in enumerate(plan.shares))
            for source_id, index in samples.tolist():
                seen[source_id].append(index)
        cursor = step.next_cursor
    wrong = sum(
        len(set(range(size)) ^ set(one[epoch * size : (epoch + 1) * size]))
        + size
        - len(set(one[epoch * size : (epoch + 1) * size]))
        for one, size in zip(seen, sizes, strict=True)
        for epoch in range(3)
    )
    return {"missing or twice": wrong, "rows over a budget": over, "shares missed": off, "steps that differ": parted}


def token_share_off() -> float:
    """How far a window's share of tokens is from its weight, where weights are of tokens."""
    plan = Plan(
        config(window=16384, weights_are="tokens"), [LengthsAlone(50_000, 0), LengthsAlone(30_000, 5, pictures=0.1)]
    )
    samples = plan.window_samples(3)
    tokens = [sum(plan.num_tokens(n, i) for i in samples[samples[:, 0] == n, 1].tolist()) for n in range(2)]
    return abs(tokens[0] / sum(tokens) - 0.8)


def shrunk_over_budget() -> float:
    """Samples that do not fit a small row, or are not as long as planned, after the loader's rule shrank them."""
    small = config(
        tokens_per_row=3200,
        patches_per_row=1600,
        window=512,
        rows_per_step=4,
        too_long="shrink",
        image=ImageConfig(min_pixels=784),
        sources=(SourceConfig(name="a", path=""),),
    )
    index = LengthsAlone(3000, 9)
    whole, _ = sample_lengths(index, small.image, small.video)  # type: ignore[arg-type]
    plan = Plan(small, [index])
    found = [plan.num_tokens(0, i) for i in range(len(index))]
    assert (whole > 400).sum() > 100, "nothing had to be shrunk"
    over = sum(length > small.tokens_per_row for length in found)
    caps = source_lengths(small, 0, index).caps  # type: ignore[arg-type]
    for i, cap in caps.items():
        grids = [media_grid(size, *capped(small.image, small.video, cap)) for size in index.media_sizes(i)]
        over += int(index.columns["num_text_tokens"][i]) + sum(grid.num_tokens for grid in grids) != found[i]
    cursor = Cursor()
    for _ in range(20):
        step = plan.step(cursor)
        over += sum(row.num_patches > small.patches_per_row for row in step.rows)
        cursor = step.next_cursor
    return over


def spread_over_dealt(dp_size: int, steps: int = 200) -> dict[str, float]:
    """What replicas have more than the mean of, as a share of that where rows are dealt in turn: means over steps."""
    mixed = config(tokens_per_row=8192, patches_per_row=32768, rows_per_step=32, window=16384)
    plan = Plan(mixed, [LengthsAlone(200_000, 0), LengthsAlone(50_000, 1, pictures=0.0)])
    cursor = Cursor()
    sums = {"patches": [0.0, 0.0], "cost": [0.0, 0.0]}
    for _ in range(steps):
        step = plan.step(cursor)
        cursor = step.next_cursor
        dealt = [list(range(rank, len(step.rows), dp_size)) for rank in range(dp_size)]
        for place, assigned in enumerate((assign_rows(step.rows, dp_size), dealt)):
            mine = [[step.rows[number] for number in numbers] for numbers in assigned]
            sums["patches"][place] += spread([sum(row.num_patches for row in rows) for rows in mine])
            sums["cost"][place] += spread([sum(row.cost for row in rows) for rows in mine])
    return {kind: balanced / in_turn for kind, (balanced, in_turn) in sums.items()}
