"""Layouts of a world that fit, fastest first; and the smallest world that has one."""

from collections.abc import Iterator
from dataclasses import replace

from launch.planning.speed import Machine
from launch.planning.stage import Rows, StagePlan, fullest_bytes, plan_stage
from launch.planning.weights import Weights
from model.placement import layout_faults
from parallel.config import ParallelConfig, RecomputeConfig
from train.config import RunConfig
from train.crosscheck import world_faults

MOST_PIPELINE = 16
"""Pipeline stages that are tried: beyond, the bubble of any usual step is most of it (ours)."""
_RECOMPUTE = tuple(
    RecomputeConfig(vision=vision, language=language)  # type: ignore[arg-type]
    for vision, language in (("none", "none"), ("full", "none"), ("full", "selective"), ("full", "full"))
)
"""From what costs least to what frees most. Patches are many and their tower small, so it goes first."""


def candidates(run: RunConfig, gpus: int, machine: Machine) -> Iterator[ParallelConfig]:
    """Layouts that the model can have on so many GPUs, the tensor axis inside of a node."""
    divisors = [size for size in range(1, gpus + 1) if gpus % size == 0]
    for tensor in (size for size in divisors if size <= machine.gpus_per_node):
        for pipeline in (size for size in divisors if size <= MOST_PIPELINE):
            if gpus % (tensor * pipeline):
                continue
            for chunks in (1, 2) if pipeline > 1 else (1,):
                layout = replace(
                    run.parallel,
                    tensor=tensor,
                    pipeline=pipeline,
                    chunks=chunks,
                    sequence_parallel=tensor > 1,
                    split="auto" if pipeline > 1 else None,
                )
                plain = replace(layout, split=None)
                if list(layout_faults(run.model, plain)) or world_faults(replace(run, parallel=layout), gpus):
                    continue
                yield layout


def search(run: RunConfig, rows: Rows, gpus: int, machine: Machine) -> list[StagePlan]:
    """Of each layout the one with least recomputation that fits; fastest first.

    What `run.parallel` says beside sizes, split and recomputation is kept.
    """
    found = []
    weights: dict[int, Weights] = {}
    rows = replace(rows, steps=rows.steps[:1])
    for layout in candidates(run, gpus, machine):
        known = _weights(run, layout, weights)
        for recompute in _RECOMPUTE:
            tried = replace(run, parallel=replace(layout, recompute=recompute))
            if fullest_bytes(tried, rows, gpus, known) <= machine.room:
                found.append(plan_stage(tried, rows, gpus, machine, known))
                break
    return sorted(found, key=lambda plan: plan.time.seconds)


def leanest(run: RunConfig, rows: Rows, gpus: int, machine: Machine) -> tuple[ParallelConfig, int] | None:
    """The layout whose fullest rank takes least, and how many bytes; None where the model has no layout at all."""
    weights: dict[int, Weights] = {}
    found = []
    for layout in candidates(run, gpus, machine):
        least = replace(layout, recompute=_RECOMPUTE[-1])
        tried = replace(run, parallel=least)
        found.append((least, fullest_bytes(tried, rows, gpus, _weights(run, layout, weights))))
    return min(found, key=lambda pair: pair[1], default=None)


def smallest_world(run: RunConfig, rows: Rows, machine: Machine, most: int = 4096) -> int | None:
    """The least power of two of GPUs on which some layout fits; None up to `most`."""
    weights: dict[int, Weights] = {}
    gpus = 1
    while gpus <= most:
        for layout in candidates(run, gpus, machine):
            least = replace(run, parallel=replace(layout, recompute=_RECOMPUTE[-1]))
            if fullest_bytes(least, rows, gpus, _weights(run, layout, weights)) <= machine.room:
                return gpus
        gpus *= 2
    return None


def _weights(run: RunConfig, layout: ParallelConfig, known: dict[int, Weights]) -> Weights:
    if layout.tensor not in known:
        known[layout.tensor] = Weights(run, layout.tensor)
    return known[layout.tensor]
