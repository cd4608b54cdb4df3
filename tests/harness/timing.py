"""Two ways of doing a step, counted, and timed in turn in one world: on a shared host only the ratio of their times
means something, and over a second or so not even that."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

from data.loading.rows import ReadStats
from data.plan.plan import StepPlan
from data.types import PackedRow
from model import balance, flops
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.flops import part_flops, row_work
from model.placement import language_split
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.world import model_parallel, pick_device
from tests.harness import counting
from tests.harness.layouts import STAGES, Stage, start
from tests.harness.rows import sized_row
from train.batches import Announced, Batches
from train.state import TrainState
from train.step import train_step

# Wide enough that matrices are most of the time, so that FLOPs can stand for it; deep enough to be dealt out.
TIMED = ModelConfig(
    name="timed",
    vision=VisionConfig(depth=8, embed_dim=256, num_heads=4),
    language=LanguageConfig(
        hidden_size=256,
        num_layers=12,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=1024,
        vocab_size=2048,
        mrope_section=(8, 12, 12),
    ),
)
SMALL = ModelConfig(
    name="small",
    vision=VisionConfig(depth=2, embed_dim=128, num_heads=4),
    language=LanguageConfig(
        hidden_size=128,
        num_layers=8,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=256,
        vocab_size=512,
        mrope_section=(4, 6, 6),
    ),
)
_MIXED = ((40, (1, 2, 2)), (300, (1, 12, 12)), (80, (1, 6, 6)), (120, (1, 8, 8))) * 2
"""Tokens and picture of each microbatch."""
_TEXTS = (48, 64, 80, 64)
"""Tokens of microbatches beside their picture, over and over."""
_GRIDS = [(1, rows, rows + more) for rows in range(2, 60, 2) for more in (0, 2)]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of each pair of calls, first and second way."""

    work: tuple[counting.Work, counting.Work]
    """Of one call of each."""
    wall: list[tuple[float, float]]
    """From when all ranks have come to when all are done."""
    busy: list[tuple[float, float]]
    """Of this rank's thread on a processor: neither its waiting nor what other jobs take away is in it."""

    @property
    def ratio(self) -> float:
        """Median over the pairs of second / first."""
        return statistics.median(second / first for first, second in self.wall)


def busiest_ratio(timings: list[Timing]) -> float:
    """Processor seconds of the busiest rank, second way / first way, each rank by its median.

    What the wall ratio comes to on a host with a free processor for each rank, bubbles and messages apart.
    """
    first, second = (max(statistics.median(pair[way] for pair in timing.busy) for timing in timings) for way in (0, 1))
    return second / first


def busiest_work(timings: list[Timing]) -> float:
    """The same of FLOPs, which are what they are on any host."""
    first, second = (max(timing.work[way].flops for timing in timings) for way in (0, 1))
    return second / first


def in_turn(first: Callable[[], object], second: Callable[[], object], pairs: int) -> Timing:
    """Call both once to count what they do; if there are pairs, once more, and then `pairs` times to be timed. Which
    goes first changes from pair to pair."""
    work = counting.count(first), counting.count(second)
    wall, busy = [], []
    for number in range(-1, pairs) if pairs else ():
        seconds = [(0.0, 0.0), (0.0, 0.0)]
        for way in (0, 1) if number % 2 else (1, 0):
            gc.collect()  # neither way pays for what the other left behind
            dist.barrier()
            started, worked = time.perf_counter(), time.thread_time()
            (first, second)[way]()
            worked = time.thread_time() - worked
            dist.barrier()
            seconds[way] = (time.perf_counter() - started, worked)
        if number >= 0:
            wall.append((seconds[0][0], seconds[1][0]))
            busy.append((seconds[0][1], seconds[1][1]))
    return Timing(work=work, wall=wall, busy=busy)


class Known:
    """Stands in for a data path by which every rank has read its rows by itself: nothing is announced in a step."""

    waited = 0.0

    def __init__(self, batches: Batches) -> None:
        self._step = batches.next()

    def next(self) -> tuple[StepPlan, Announced]:
        return self._step

    def stats(self) -> ReadStats:
        return ReadStats()


class Repeated:
    """A training stage on one layout that takes the same rows at every step."""

    def __init__(
        self,
        model: ModelConfig,
        parallel: ParallelConfig,
        stage: str,
        groups: Groups,
        rows: list[PackedRow],
        steps: int,
        known: bool = False,
    ) -> None:
        bucket = parallel.reduce_bucket_elements  # as runs have it: a message for each tensor would be what is timed
        self.made: Stage = start(
            parallel, stage, groups, model=model, steps=[rows] * steps, std=0.02, bucket_elements=bucket
        )
        batches = self.made.parts.batches
        self._parts = replace(self.made.parts, batches=cast(Batches, Known(batches)) if known else batches)
        self.numbers: list[tuple[float, float]] = []
        """Loss and gradient norm of each step."""
        self._state = TrainState()

    def step(self) -> None:
        """One optimizer step."""
        report = train_step(self._parts, self._state)
        self.numbers.append((report.loss, report.grad_norm))


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """megatron-core's exchange of shapes before every message, between ranks that have read all rows by themselves,
    and announced lengths."""

    timing: Timing
    different: int
    """Steps with another loss or norm, and weights with another bit afterwards, on this rank."""


def time_handshake(pipeline: int, stage: str, pairs: int) -> Handshake:
    """Announced lengths (second) over megatron-core's own handshake (first), on rows of 40 to 300 tokens."""
    generator = np.random.default_rng(0)
    rows = [sized_row(generator, SMALL.language.vocab_size, tokens, [grid]) for tokens, grid in _MIXED]
    parallel = ParallelConfig(pipeline=pipeline)
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        asked, announced = (
            Repeated(SMALL, parallel, stage, groups, rows, pairs + 2, known=known) for known in (True, False)
        )
        communicator = asked.made.parts.schedule._communicator
        exchange = P2PCommunicator._communicate_shapes.__get__(communicator)
        communicator._communicate_shapes = exchange  # type: ignore[method-assign]
        timing = in_turn(asked.step, announced.step, pairs)
        weights = [way.made.built.module.parameters() for way in (asked, announced)]
        different = sum(not torch.equal(one, other) for one, other in zip(*weights, strict=True))
        different += sum(one != other for one, other in zip(asked.numbers, announced.numbers, strict=True))
        for way in (asked, announced):
            way.made.optimizer.close()
    return Handshake(timing=timing, different=different)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """An even split of the language layers, and the balanced one."""

    even: tuple[int, ...]
    auto: tuple[int, ...]
    vision: float
    """Share of the vision tower in the FLOPs of the step."""
    timing: Timing | None
    """None where the two are the same."""


def time_splits(stage: str, vision: float, pairs: int, microbatches: int = 8) -> Splits:
    """`parallel.split=auto` (second) over an even split (first) on two pipeline stages, where the vision tower has
    about the given share of the FLOPs.

    Filling and draining the pipeline, which no split changes, is one part in `microbatches` of a step.
    """
    rows, work = mixture(stage, vision, microbatches)
    even = ParallelConfig(pipeline=2)
    # Looked up at the call: a planted defect replaces it.
    auto = balance.balanced_split(TIMED, even, STAGES[stage], work)
    timing = None
    if auto != language_split(TIMED, even):
        timing = _in_turn_on(even, ParallelConfig(pipeline=2, split=auto), stage, rows, pairs)
    return Splits(even=language_split(TIMED, even), auto=auto, vision=vision_share(stage, work), timing=timing)


def time_chunks(stage: str, pairs: int) -> Timing:
    """Interleaved 1F1B at 2 chunks (second) over plain 1F1B (first), two pipeline stages, each with its balanced split
    of a mixture that is a third vision."""
    rows, work = mixture(stage, 0.35)
    layouts = []
    for chunks in (1, 2):
        even = ParallelConfig(pipeline=2, chunks=chunks)
        split = balance.balanced_split(TIMED, even, STAGES[stage], work)
        layouts.append(ParallelConfig(pipeline=2, chunks=chunks, split=split))
    return _in_turn_on(*layouts, stage, rows, pairs)


def _in_turn_on(first: ParallelConfig, second: ParallelConfig, stage: str, rows: list[PackedRow], pairs: int) -> Timing:
    with model_parallel(first, pick_device(), seed=0) as groups:
        ways = [Repeated(TIMED, parallel, stage, groups, rows, pairs + 2) for parallel in (first, second)]
        timing = in_turn(ways[0].step, ways[1].step, pairs)
        for way in ways:
            way.made.optimizer.close()
    return timing


def mixture(stage: str, vision: float, microbatches: int = 8) -> tuple[list[PackedRow], flops.Work]:
    """Rows of one picture and some text each, with pictures of the size that brings the vision tower nearest to the
    given share of the FLOPs of `stage`."""
    vocab_size, generator = TIMED.language.vocab_size, np.random.default_rng(0)
    works = {grid: _work(grid) for grid in _GRIDS}
    grid = min(_GRIDS, key=lambda grid: abs(vision_share(stage, works[grid]) - vision))
    texts = islice(cycle(_TEXTS), microbatches)
    rows = [sized_row(generator, vocab_size, grid[1] * grid[2] // 4 + text, [grid]) for text in texts]
    return rows, works[grid]


def vision_share(stage: str, work: flops.Work) -> float:
    """Of the vision tower in the FLOPs of a step."""
    parts = part_flops(TIMED, STAGES[stage], work)
    return parts["vision"] / sum(parts.values())


def _work(grid: tuple[int, int, int]) -> flops.Work:
    visual = grid[1] * grid[2] // 4
    return sum((row_work([visual + text], [grid], text) for text in _TEXTS), flops.Work())
