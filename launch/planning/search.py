"""Layouts of a world that fit, fastest first; and the smallest world that has one."""

from collections.abc import Iterable, Iterator
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


class Search:
    """Layouts of one training stage. Parameters are built once for each tensor size, which takes most of the time."""

    def __init__(self, run: RunConfig, rows: Rows, machine: Machine) -> None:
        """What `run.parallel` says beside sizes, split and recomputation is kept. Of `rows` the first step counts."""
        self._run, self._machine = run, machine
        self._rows = replace(rows, steps=rows.steps[:1])
        self._weights: dict[int, Weights] = {}

    def layouts(self, gpus: int) -> Iterator[ParallelConfig]:
        """Those that the model can have on so many GPUs, the tensor axis inside of a node."""
        divisors = [size for size in range(1, gpus + 1) if gpus % size == 0]
        for tensor in (size for size in divisors if size <= self._machine.gpus_per_node):
            for pipeline in (size for size in divisors if size <= MOST_PIPELINE):
                if gpus % (tensor * pipeline):
                    continue
                for chunks in (1, 2) if pipeline > 1 else (1,):
                    layout = replace(
                        self._run.parallel,
                        tensor=tensor,
                        pipeline=pipeline,
                        chunks=chunks,
                        sequence_parallel=tensor > 1,
                        split="auto" if pipeline > 1 else None,
                    )
                    plain = replace(layout, split=None)
                    run = replace(self._run, parallel=layout)
                    if not list(layout_faults(run.model, plain)) and not world_faults(run, gpus):
                        yield layout

    def fitting(self, gpus: int) -> list[StagePlan]:
        """Of each layout the one with least recomputation that fits; fastest first."""
        found = []
        for layout in self.layouts(gpus):
            for recompute in _RECOMPUTE:
                run = replace(self._run, parallel=replace(layout, recompute=recompute))
                if self._bytes(run.parallel, gpus) <= self._machine.room:
                    found.append(plan_stage(run, self._rows, gpus, self._machine, self._of(layout)))
                    break
        return sorted(found, key=lambda plan: plan.time.seconds)

    def leanest(self, gpus: int) -> tuple[ParallelConfig, int] | None:
        """The layout whose fullest rank takes least, and how many bytes; None where the model has no layout at all."""
        least = (replace(layout, recompute=_RECOMPUTE[-1]) for layout in self.layouts(gpus))
        return min(((layout, self._bytes(layout, gpus)) for layout in least), key=lambda pair: pair[1], default=None)

    def fewest(self, most: int = 4096) -> int | None:
        """The least number of GPUs on which some layout fits, by whole nodes beyond one; None up to `most`."""
        for gpus in worlds(self._machine.gpus_per_node, most):
            least = (replace(layout, recompute=_RECOMPUTE[-1]) for layout in self.layouts(gpus))
            if any(self._bytes(layout, gpus) <= self._machine.room for layout in least):
                return gpus
        return None

    def _bytes(self, layout: ParallelConfig, gpus: int) -> int:
        return fullest_bytes(replace(self._run, parallel=layout), self._rows, gpus, self._of(layout))

    def _of(self, layout: ParallelConfig) -> Weights:
        if layout.tensor not in self._weights:
            self._weights[layout.tensor] = Weights(self._run, layout.tensor)
        return self._weights[layout.tensor]


def worlds(gpus_per_node: int, most: int) -> Iterable[int]:
    """Numbers of GPUs that jobs have: any within a node, then whole nodes; doubled where only the data axis grows."""
    gpus = 1
    while gpus <= most:
        yield gpus
        if gpus < gpus_per_node:
            gpus += 1
        elif gpus < gpus_per_node * MOST_PIPELINE:
            gpus += gpus_per_node
        else:
            gpus *= 2
