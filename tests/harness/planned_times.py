"""Step times of layouts as a plan has them, beside measured ones: ratios to the first layout, in one run."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from data.types import PackedRow
from launch.planning.piece import Piece, cut
from launch.planning.speed import Machine, step_time
from model.activations import RowSizes, kernels_of
from model.balance import balanced_split
from model.hf_weights import canonical_shape, hf_pieces
from model.placement import language_split
from parallel.config import ParallelConfig
from parallel.gpus import Gpu
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import STAGES
from tests.harness.rows import sized_row
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
_SHORT, _LONG = 1_000, 10_000_000
"""Elements of the messages that tell how fast they are here; the long ones are in no cache."""
_CHAIN = 100

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
    """Measure a step of each layout in a world of two, `rounds` times around; plan the same rows on a machine that is
    measured in the same run: messages, memory and a layer's calls by themselves, its FLOP/s so that the first layout is
    right. On every rank."""
    rows, work = mixture(stage, _VISION, _MICROBATCHES)
    layouts = {name: _settled(parallel, stage, work) for name, parallel in LAYOUTS.items()}
    probes = {
        "message": _message_seconds,
        "link": _link_bandwidth,
        "memory": _memory_bandwidth,
        "layer": lambda: _layer_seconds(stage),
    }
    steps = {name: partial(_seconds, parallel, stage, rows) for name, parallel in layouts.items()}
    taken = _medians(steps | probes, rounds)
    sizes = [_sizes(row) for row in rows]
    first = next(iter(layouts))
    processor = Gpu(
        name="CPU", flops=math.inf, memory=1e12, memory_bandwidth=taken["memory"], link_bandwidth=taken["link"]
    )
    calls = Machine(
        gpu=processor,
        efficiency=1.0,
        message_seconds=taken["message"],
        layer_seconds=taken["layer"],
        overlaps=False,
    )
    bare = Machine(
        gpu=replace(processor, flops=1.0, memory_bandwidth=math.inf, link_bandwidth=math.inf),
        efficiency=1.0,
        message_seconds=0.0,
    )
    flops = _planned(layouts[first], stage, sizes, bare)
    passes = taken[first] - _planned(layouts[first], stage, sizes, calls)
    assert passes > 0, f"{taken} leave no time for matrices"
    flops /= passes
    host = replace(calls, gpu=replace(processor, flops=flops))
    return {
        name: Compared(measured=taken[name], planned=_planned(parallel, stage, sizes, host))
        for name, parallel in layouts.items()
    }


def _medians(probes: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Each measured once a round: what the host does beside reaches all of them."""
    found: dict[str, list[float]] = {name: [] for name in probes}
    for _ in range(rounds):
        for name, probe in probes.items():
            found[name].append(probe())
    return {name: statistics.median(times) for name, times in found.items()}


def _settled(parallel: ParallelConfig, stage: str, work: object) -> ParallelConfig:
    if parallel.split != "auto":
        return parallel
    return replace(parallel, split=balanced_split(TIMED, parallel, STAGES[stage], work))  # type: ignore[arg-type]


def _seconds(parallel: ParallelConfig, stage: str, rows: Sequence) -> float:
    """Of a step."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        way = Repeated(TIMED, parallel, stage, groups, list(rows), 4)
        way.step()
        seconds = _fastest(way.step, 3)
        way.made.optimizer.close()
    return seconds


def _message_seconds() -> float:
    """Of each of the two rounds of an all-reduce, between which both ranks compute, as layers do: one waits for the
    other and has to be woken. One right after the other they take a third of it."""
    narrow, wide = torch.ones(80, 256), torch.ones(256, 2048)  # about as long as the matrices of a layer
    values = torch.zeros(_SHORT)

    def chain(tell: bool) -> None:
        for _ in range(_CHAIN):
            torch.mm(narrow, wide)
            if tell:
                dist.all_reduce(values)

    return (_fastest(partial(chain, True)) - _fastest(partial(chain, False))) / (2 * _CHAIN)


def _link_bandwidth() -> float:
    """Bytes a second that each rank sends when gradients are reduced and weights gathered."""
    values, gathered = torch.zeros(_LONG), torch.zeros(2 * _LONG)
    seconds = _fastest(lambda: dist.all_reduce(values))
    seconds += _fastest(lambda: dist.all_gather_into_tensor(gathered, values))
    return 2 * values.nbytes / seconds


def _memory_bandwidth() -> float:
    """Bytes a second that a rank reads and writes while the other does, too."""
    values, copied = torch.zeros(_LONG), torch.zeros(_LONG)
    return 2 * values.nbytes / _fastest(lambda: copied.copy_(values))


def _fastest(call: Callable[[], object], times: int = 5) -> float:
    """Seconds until both ranks are done."""
    best = math.inf
    for _ in range(times):
        dist.barrier()
        started = time.perf_counter()
        call()
        dist.barrier()
        best = min(best, time.perf_counter() - started)
    return best


def _layer_seconds(stage: str) -> float:
    """Of a layer's way forward or back over a row of hardly any tokens."""
    generator = np.random.default_rng(0)
    seconds = []
    for count in (2, 10):
        rows = [sized_row(generator, TIMED.language.vocab_size, 16, [(1, 2, 2)]) for _ in range(count)]
        seconds.append(_seconds(LAYOUTS["DP2"], stage, rows))
    (piece,) = _pieces(LAYOUTS["DP2"], stage)
    blocks = sum(piece.block_passes(_sizes(rows[0]), backward) for backward in (False, True))
    return (seconds[1] - seconds[0]) / (4 * blocks)  # of two ranks each has four rows more


def _sizes(row: PackedRow) -> RowSizes:
    return RowSizes(
        segments=tuple(int(length) for length in row.segment_lengths),
        frames=tuple(int(rows * columns) for _, rows, columns in row.grids),
        targets=int((row.targets >= 0).sum()),
    )


def _pieces(parallel: ParallelConfig, stage: str) -> list[Piece]:
    kernels = kernels_of(parallel, "fp32", on_gpu=False)
    return cut(TIMED, parallel, kernels, STAGES[stage], language_split(TIMED, parallel))


def _planned(parallel: ParallelConfig, stage: str, sizes: Sequence[RowSizes], machine: Machine) -> float:
    dp_size = parallel.data_size(2)
    replicas = [list(sizes[number::dp_size]) for number in range(dp_size)]
    trained = TRAINED[stage] // (parallel.tensor * parallel.pipeline)
    return step_time(_pieces(parallel, stage), replicas, trained, machine).seconds
