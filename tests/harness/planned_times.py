"""Step times of layouts as a plan has them, beside measured ones: ratios to the first layout, in one run."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from launch.planning.piece import cut
from launch.planning.speed import Machine, step_time
from model.activations import RowSizes, kernels_of
from model.balance import balanced_split
from model.hf_weights import canonical_shape, hf_pieces
from model.placement import language_split
from parallel.config import ParallelConfig
from parallel.gpus import Gpu
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import STAGES
from tests.harness.timing import TIMED, Repeated, mixture

LAYOUTS = {
    "DP2": ParallelConfig(),
    "TP2": ParallelConfig(tensor=2),
    "TP2+SP": ParallelConfig(tensor=2, sequence_parallel=True),
    "PP2 even": ParallelConfig(pipeline=2),
    "PP2 auto": ParallelConfig(pipeline=2, split="auto"),
    "PP2 interleaved": ParallelConfig(pipeline=2, chunks=2, split="auto"),
}
_VISION, _MICROBATCHES = 0.35, 8
_PROBE = 1_000_000
"""Elements of the all-reduce that tells how fast messages are here."""

TRAINED = {
    stage: sum(
        math.prod(canonical_shape(pieces)) for name, pieces in hf_pieces(TIMED).items() if name.startswith(parts)
    )
    for stage, parts in STAGES.items()
}
"""Elements, of which each rank is taken to have its share."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Seconds of a step on a layout."""

    measured: float
    planned: float


def compare_times(stage: str, rounds: int) -> dict[str, Compared]:
    """Measure a step of each layout in a world of two, `rounds` times around; plan the same rows on a machine whose
    speed makes the first layout right, and whose links are as fast as an all-reduce is here. On every rank."""
    rows, work = mixture(stage, _VISION, _MICROBATCHES)
    layouts = {name: _settled(parallel, stage, work) for name, parallel in LAYOUTS.items()}
    measured: dict[str, list[float]] = {name: [] for name in layouts}
    for _ in range(rounds):
        for name, parallel in layouts.items():
            measured[name].append(_seconds(parallel, stage, rows))
    medians = {name: statistics.median(times) for name, times in measured.items()}
    sizes = [
        RowSizes(
            segments=tuple(int(length) for length in row.segment_lengths),
            frames=tuple(int(rows * columns) for _, rows, columns in row.grids),
            targets=int((row.targets >= 0).sum()),
        )
        for row in rows
    ]
    link = _link_bandwidth()
    first = next(iter(layouts))
    unit = _planned(layouts[first], stage, sizes, 1.0, float("inf"))
    flops = unit / medians[first]
    return {
        name: Compared(measured=medians[name], planned=_planned(parallel, stage, sizes, flops, link))
        for name, parallel in layouts.items()
    }


def _settled(parallel: ParallelConfig, stage: str, work: object) -> ParallelConfig:
    if parallel.split != "auto":
        return parallel
    return replace(parallel, split=balanced_split(TIMED, parallel, STAGES[stage], work))  # type: ignore[arg-type]


def _seconds(parallel: ParallelConfig, stage: str, rows: Sequence) -> float:
    """Of the fastest of three steps, which ranks begin together."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        way = Repeated(TIMED, parallel, stage, groups, list(rows), 4)
        way.step()
        best = float("inf")
        for _ in range(3):
            dist.barrier()
            started = time.perf_counter()
            way.step()
            dist.barrier()
            best = min(best, time.perf_counter() - started)
        way.made.optimizer.close()
    return best


def _link_bandwidth() -> float:
    """Bytes a second that a rank sends in an all-reduce of two ranks, the fastest of ten."""
    values = torch.ones(_PROBE)
    best = float("inf")
    for _ in range(10):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        best = min(best, time.perf_counter() - started)
    return values.nbytes / best


def _planned(parallel: ParallelConfig, stage: str, sizes: Sequence[RowSizes], flops: float, link: float) -> float:
    gpu = Gpu(name="CPU", flops=flops, memory=1e12, memory_bandwidth=float("inf"), link_bandwidth=link)
    machine = Machine(gpu=gpu, efficiency=1.0)
    kernels = kernels_of(parallel, "fp32", on_gpu=False)
    pieces = cut(TIMED, parallel, kernels, STAGES[stage], language_split(TIMED, parallel))
    dp_size = parallel.data_size(2)
    replicas = [list(sizes[number::dp_size]) for number in range(dp_size)]
    trained = TRAINED[stage] // (parallel.tensor * parallel.pipeline)
    return step_time(pieces, replicas, trained, machine).seconds
