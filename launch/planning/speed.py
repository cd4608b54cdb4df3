"""Seconds of a step: passes by their FLOPs, messages by their bytes, put in order by launch/planning/timeline.py.

Coarse on purpose: what it is for is comparing layouts, and telling days from weeks. What it takes from the hardware is
in `Machine`; measured shares of peak replace the assumed ones where there are some.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.planning.timeline import Pass, Timeline, simulate
from model.activations import RowSizes
from model.config import ModelConfig
from model.flops import Work, part_flops, row_work
from parallel.config import ParallelConfig
from parallel.gpus import Gpu


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """GPUs, and how they reach each other."""

    gpu: Gpu
    gpus_per_node: int = 8
    network_bandwidth: float = 50e9
    """Bytes a second of one GPU to other nodes, one direction: 400 Gb/s."""
    efficiency: float = 0.6
    """Share of the data sheet's FLOPs that a pass reaches (ours, until measured)."""

    def bandwidth(self, span: int) -> float:
        """Of neighbours in a group whose ranks are spread over `span` consecutive ranks of the world."""
        return self.gpu.link_bandwidth if span <= self.gpus_per_node else self.network_bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Of one optimizer step, in seconds."""

    pipeline: Timeline
    """Of the replica that takes longest."""
    reduction: float
    """Gradients over the data axis, and weights back."""
    flops: int
    """Of all replicas, without what is computed again."""

    @property
    def seconds(self) -> float:
        return self.pipeline.seconds + self.reduction


def step_time(
    model: ModelConfig,
    parallel: ParallelConfig,
    trainable: tuple[str, ...],
    split: Sequence[int],
    replicas: Sequence[Sequence[RowSizes]],
    trained_bytes: int,
    machine: Machine,
    bytes_each: int = 2,
) -> StepTime:
    """Of a step whose rows are given, replica by replica.

    Args:
        trained_bytes: fp32 gradients of the rank that trains most.
    """
    lines = [_pipeline(model, parallel, trainable, split, rows, machine, bytes_each) for rows in replicas]
    count = len(replicas)
    span = parallel.tensor * parallel.pipeline * count
    share = (count - 1) / count
    # An all-reduce of fp32 gradients, then an all-gather of weights in the model's dtype.
    nbytes = trained_bytes * 2 * share + trained_bytes / 4 * bytes_each * share
    works = [_work(row) for rows in replicas for row in rows]
    return StepTime(
        pipeline=max(lines, key=lambda line: line.seconds),
        reduction=nbytes / machine.bandwidth(span),
        flops=sum(sum(part_flops(model, trainable, work).values()) for work in works),
    )


def _pipeline(
    model: ModelConfig,
    parallel: ParallelConfig,
    trainable: tuple[str, ...],
    split: Sequence[int],
    rows: Sequence[RowSizes],
    machine: Machine,
    bytes_each: int,
) -> Timeline:
    stages, last = parallel.pipeline, len(split) - 1
    rate = machine.gpu.flops * machine.efficiency * parallel.tensor
    forward = [part_flops(model, (), _work(row)) for row in rows]
    whole = [part_flops(model, trainable, _work(row), parallel.recompute) for row in rows]
    width = model.language.hidden_size * bytes_each
    between = machine.bandwidth(parallel.tensor * (2 if stages > 1 else 1))

    def seconds(rank: int, step: Pass) -> float:
        piece = step.chunk * stages + rank
        layers = split[piece] / model.language.num_layers

        def of(parts: dict[str, int]) -> float:
            total = parts["layers"] * layers
            total += parts.get("vision", 0) + parts.get("merger", 0) if piece == 0 else 0
            return total + (parts["head"] if piece == last else 0)

        ahead = of(forward[step.microbatch])
        flops = of(whole[step.microbatch]) - ahead if step.backward else ahead
        return flops / rate + _tensor_seconds(parallel, machine, rows[step.microbatch].tokens * width * split[piece])

    return simulate(
        stages,
        parallel.chunks,
        len(rows),
        seconds,
        lambda microbatch: rows[microbatch].tokens * width / (parallel.tensor * between),
    )


def _tensor_seconds(parallel: ParallelConfig, machine: Machine, nbytes: float) -> float:
    """Two all-reduces of a layer's activations in a pass, or as many bytes gathered and scattered."""
    if parallel.tensor == 1:
        return 0.0
    share = (parallel.tensor - 1) / parallel.tensor
    return 2 * 2 * share * nbytes / machine.bandwidth(parallel.tensor)


def _work(row: RowSizes) -> Work:
    grids = [(1, 1, patches) for patches in row.frames]
    return row_work(row.segments, grids, row.targets)
