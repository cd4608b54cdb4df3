"""One training stage on one layout: what its ranks hold, how long its steps take, and whether it fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from data.plan.plan import Plan
from data.types import SampleIndex
from launch.planning.memory import RankMemory, rank_memory
from launch.planning.piece import Piece, cut
from launch.planning.rows import PlannedStep, drawn_steps, fullest_rows, imagined_step
from launch.planning.speed import Machine, StepTime, step_time
from launch.planning.weights import Weights
from model.activations import RowSizes, kernels_of
from model.balance import balanced_split
from model.flops import Work, step_flops
from model.memory import HeldBytes
from model.placement import check_layout, language_split
from parallel.config import ParallelConfig
from train.config import RunConfig
from train.crosscheck import world_faults
from train.ready import open_data

_STEPS = 4
"""Of the recipe's own plan, of which one tells the time and all tell the memory."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a stage is planned for."""

    steps: tuple[PlannedStep, ...]
    said: str
    """Where they are from, for people."""

    @cached_property
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
    def most(self) -> int:
        """Bytes of the fullest rank, whatever rows come."""
        return max(memory.most for memory in self.fullest)

    @property
    def fits(self) -> bool:
        return self.most <= self.machine.room

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


def plan_stage(run: RunConfig, rows: Rows, gpus: int, machine: Machine, weights: Weights | None = None) -> StagePlan:
    """Reckon a stage, whether it fits or not. For a process that has joined no world.

    Args:
        weights: of the run and its `parallel.tensor`, where they are at hand.

    Raises ValueError if the model cannot have this layout, or the world not these axes.
    """
    faults = world_faults(run, gpus)
    if faults:
        raise ValueError("; ".join(faults))
    check_layout(run.model, replace(run.parallel, split=None) if run.parallel.split == "auto" else run.parallel)
    run, held = _held(run, rows, gpus, weights or Weights(run, run.parallel.tensor))
    dp_size = run.parallel.data_size(gpus)
    pieces = _pieces(run)
    step = rows.steps[0]
    every = [replica for step in rows.steps for replica in step.replicas(dp_size)]
    return StagePlan(
        run=run,
        gpus=gpus,
        machine=machine,
        drawn=_ranks(pieces, held, every),
        fullest=_fullest(run, pieces, held, dp_size),
        time=step_time(pieces, step.replicas(dp_size), max(one.trained for one in held), machine),
        work=step.work,
        rows_said=rows.said,
    )


def fullest_bytes(run: RunConfig, rows: Rows, gpus: int, weights: Weights) -> int:
    """`StagePlan.most` alone, for a run that `plan_stage` would take."""
    run, held = _held(run, rows, gpus, weights)
    return max(memory.most for memory in _fullest(run, _pieces(run), held, run.parallel.data_size(gpus)))


def sure_bytes(run: RunConfig, rows: Rows, gpus: int, weights: Weights) -> int:
    """What the fullest rank holds whatever rows come: weights, optimizer state, and gradients."""
    _, held = _held(run, rows, gpus, weights)
    return max(max(one.after_backward, one.after_reduction) for one in held)


def _held(run: RunConfig, rows: Rows, gpus: int, weights: Weights) -> tuple[RunConfig, list[HeldBytes]]:
    """The run with its layout settled, and what the ranks of each pipeline stage hold of it."""
    run = replace(run, parallel=_settled(run, rows.work))
    return run, weights.held(_split(run), run.parallel.pipeline, run.parallel.data_size(gpus))


def _split(run: RunConfig) -> tuple[int, ...]:
    return language_split(run.model, run.parallel)


def _pieces(run: RunConfig) -> list[Piece]:
    kernels = kernels_of(run.parallel, run.precision, on_gpu=True)
    return cut(run.model, run.parallel, kernels, run.stage.trainable, _split(run))


def _fullest(
    run: RunConfig, pieces: Sequence[Piece], held: Sequence[HeldBytes], dp_size: int
) -> tuple[RankMemory, ...]:
    microbatches = -(-run.data.rows_per_step // dp_size)
    return _ranks(pieces, held, [[row] * microbatches for row in fullest_rows(run)])


def _settled(run: RunConfig, work: Work) -> ParallelConfig:
    """As the trainer settles it (train/balance.py), for rows that need not be the recipe's own."""
    if run.parallel.split != "auto" or run.parallel.pipeline == 1:
        return replace(run.parallel, split=None) if run.parallel.split == "auto" else run.parallel
    return replace(run.parallel, split=balanced_split(run.model, run.parallel, run.stage.trainable, work))


def _ranks(
    pieces: Sequence[Piece], held: Sequence[HeldBytes], replicas: Sequence[Sequence[RowSizes]]
) -> tuple[RankMemory, ...]:
    """The worst of the replicas, for each pipeline stage."""
    return tuple(
        max((rank_memory(pieces, one, rank, rows) for rows in replicas), key=lambda memory: memory.most)
        for rank, one in enumerate(held)
    )
