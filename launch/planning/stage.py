"""One training stage on one layout: what its ranks hold, how long its steps take, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from data.types import SampleIndex
from data.plan.plan import Plan
from launch.planning.memory import RankMemory, rank_memory
from launch.planning.piece import Piece, cut
from launch.planning.rows import PlannedStep, drawn_steps, fullest_rows, imagined_step
from launch.planning.speed import Machine, StepTime, step_time
from model.activations import kernels_of
from model.balance import balanced_split
from model.build import build_model
from model.flops import Work, step_flops
from model.memory import HeldBytes
from model.placement import check_layout, language_split
from parallel.config import ParallelConfig
from parallel.world import imagined_rank
from train.config import RunConfig
from train.crosscheck import world_faults
from train.optimizer import state_bytes
from train.ready import open_data

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_STEPS = 4
"""Of the recipe's own plan, of which one tells the time and all tell the memory."""
RESERVE_BYTES, RESERVE_SHARE = 3e9, 0.04
"""Of a GPU, left to the CUDA context, NCCL's buffers, libraries' workspaces, and to what the allocator cannot use
(ours, until measured)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a stage is planned for."""

    steps: tuple[PlannedStep, ...]
    said: str
    """Where they are from, for people."""

    @property
    def work(self) -> Work:
        return sum((step.work for step in self.steps), Work())


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """Everything that is told of a stage."""

    run: RunConfig
    """Its layout settled: numbers in place of `auto`."""
    gpus: int
    machine: Machine
    drawn: tuple[RankMemory, ...]
    """Of the ranks of each pipeline stage, at most over the planned rows."""
    fullest: tuple[RankMemory, ...]
    """The same if every row filled the recipe's budgets."""
    time: StepTime
    work: Work
    """Of the step that `time` is for."""
    rows_said: str

    @property
    def data_size(self) -> int:
        return self.run.parallel.data_size(self.gpus)

    @property
    def room(self) -> float:
        """Bytes of a GPU that a run may take."""
        memory = self.machine.gpu.memory
        return memory * (1 - RESERVE_SHARE) - RESERVE_BYTES

    @property
    def most(self) -> int:
        """Bytes of the fullest rank, whatever rows come."""
        return max(memory.most for memory in self.fullest)

    @property
    def fits(self) -> bool:
        return self.most <= self.room

    @property
    def tokens_per_second(self) -> float:
        """Text and visual tokens, all replicas together."""
        return self.work.tokens / self.time.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs over what the GPUs could do; what is computed again does not count."""
        flops = step_flops(self.run.model, self.run.stage.trainable, self.work)
        return flops / (self.time.seconds * self.gpus * self.machine.gpu.flops)

    @property
    def seconds(self) -> float:
        """Of the whole stage, saves and restarts left out."""
        stage = self.run.stage
        if stage.tokens is not None:
            return stage.tokens / self.tokens_per_second
        assert stage.steps is not None
        return stage.steps * self.time.seconds

    @property
    def gpu_hours(self) -> float:
        return self.seconds * self.gpus / 3600


def stage_rows(run: RunConfig) -> Rows:
    """Rows of the recipe's own plan where its data are there; imagined ones, and why, where they are not."""
    try:
        _, indexes, plan = open_data(run)
    except (ValueError, OSError) as fault:
        return Rows(steps=(imagined_step(run),), said=f"imagined rows, 70 % visual tokens: {fault}")
    return Rows(steps=tuple(drawn_steps(plan, indexes, _STEPS)), said=_told(plan, indexes))


def _told(plan: Plan, indexes: Sequence[SampleIndex]) -> str:
    samples = sum(len(index) for index in indexes)
    return f"rows of the first {_STEPS} steps, drawn from {samples:,} samples of {len(indexes)} sources"


def plan_stage(run: RunConfig, rows: Rows, gpus: int, machine: Machine) -> StagePlan:
    """Build the ranks of one replica on the meta device, and reckon. For a process that has joined no world.

    Raises ValueError if the model cannot have this layout, or the world not these axes.
    """
    faults = world_faults(run, gpus)
    if faults:
        raise ValueError("; ".join(faults))
    check_layout(run.model, replace(run.parallel, split=None) if run.parallel.split == "auto" else run.parallel)
    run = replace(run, parallel=_settled(run, rows.work))
    dp_size = run.parallel.data_size(gpus)
    kernels = kernels_of(run.parallel, run.precision, on_gpu=True)
    split = language_split(run.model, run.parallel)
    pieces = cut(run.model, run.parallel, kernels, run.stage.trainable, split)
    held = [_held(run, stage, dp_size) for stage in range(run.parallel.pipeline)]
    step = rows.steps[0]
    time = step_time(pieces, step.replicas(dp_size), max(_trained(one, run.precision) for one in held), machine)
    every = [replica for step in rows.steps for replica in step.replicas(dp_size)]
    microbatches = max(len(replica) for replica in every)
    full = [[row] * microbatches for row in fullest_rows(run)]
    return StagePlan(
        run=run,
        gpus=gpus,
        machine=machine,
        drawn=_ranks(pieces, held, every),
        fullest=_ranks(pieces, held, full),
        time=time,
        work=step.work,
        rows_said=rows.said,
    )


def _settled(run: RunConfig, work: Work) -> ParallelConfig:
    """As the trainer settles it (train/balance.py), for rows that need not be the recipe's own."""
    if run.parallel.split != "auto" or run.parallel.pipeline == 1:
        return replace(run.parallel, split=None) if run.parallel.split == "auto" else run.parallel
    return replace(run.parallel, split=balanced_split(run.model, run.parallel, run.stage.trainable, work))


def _held(run: RunConfig, stage: int, dp_size: int) -> HeldBytes:
    """Of tensor rank 0 of a pipeline stage, on data rank 0: no rank has more, but for alignment."""
    parallel = run.parallel
    # One replica's worth of ranks is enough: a larger world has the same pieces of the model.
    with imagined_rank(parallel, parallel.tensor * parallel.pipeline, stage * parallel.tensor) as groups:
        built = build_model(run.model, parallel, groups, _DTYPES[run.precision], run.stage.trainable)
        return state_bytes(run, built, dp_size)


def _trained(held: HeldBytes, precision: str) -> int:
    return (held.accumulators if precision == "bf16" else held.gradients) // 4


def _ranks(pieces: Sequence[Piece], held: Sequence[HeldBytes], replicas: Sequence[Sequence]) -> tuple[RankMemory, ...]:
    """The worst of the replicas, for each pipeline stage."""
    return tuple(
        max((rank_memory(pieces, one, rank, rows) for rows in replicas), key=lambda memory: memory.most)
        for rank, one in enumerate(held)
    )
