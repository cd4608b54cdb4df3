"""One optimizer step. World size 1, every layout and every stage run this same function."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field

import torch
from torch import Tensor

from data.loading.rows import ReadStats
from data.plan.plan import StepPlan
from model.flops import Work
from model.vlm import Row
from parallel.collectives import from_last_pipeline_stage, sum_over
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.stopwatch import Stopwatch
from parallel.zero import Update, ZeroOptimizer
from train.batches import Announced, Batches, SourceCounts
from train.config import StageConfig
from train.rates import part_rates, stage_progress
from train.state import TrainState


class NonFiniteStep(RuntimeError):
    """More steps in a row than the recipe allows had a loss or gradient that is not finite; no rank has updated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepParts:
    """What a step is made of."""

    batches: Batches
    schedule: Schedule
    optimizer: ZeroOptimizer
    groups: Groups
    stage: StageConfig
    skip_non_finite: int = 0
    """Steps in a row that may be left out because they are not finite (train/config.py)."""
    listen: Callable[[Row, Tensor], None] | None = None
    """Is given the losses of each microbatch's supervised tokens, (1, S), on the last pipeline stage."""
    reducing: Stopwatch = field(default_factory=lambda: Stopwatch(torch.device("cpu")))
    """Runs while gradients are reduced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did, the same on every rank but for `data_seconds` and `reading`, which are right on ranks that
    read."""

    loss: float
    """Mean over the supervised tokens of the whole step; nan where there was nothing to learn."""
    grad_norm: float
    """Before clipping; 0 where no gradient was taken."""
    part_norms: dict[str, float]
    """Of each part that learns, likewise; their squares sum up to its square. Empty where no gradient was taken."""
    rates: dict[str, float]
    targets: int
    samples: int
    bad: int
    """Samples that could not be decoded."""
    work: Work
    computed: bool
    """Whether forward and backward ran; they do not where there is nothing to learn."""
    sources: list["SourceReport"]
    """In the order of data.sources."""
    bubble: float
    """Share of forward and backward in which ranks waited for other pipeline stages, messages included; the mean of all
    ranks."""
    skipped: str | None
    """Why the optimizer was left untouched, if it was."""
    plan: StepPlan
    data_seconds: float
    """Waiting for rows and sharing them, on the replica that waited longest."""
    reading: ReadStats
    """What readers have counted since the start, summed over replicas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """What one step had of one source."""

    counts: SourceCounts
    loss: float
    """Mean over its supervised tokens; nan where there are none, or nothing was computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Of the supervised tokens of a whole step, the same on every rank."""

    mean: float
    sums: tuple[float, ...]
    """By source."""


def train_step(parts: StepParts, state: TrainState) -> StepReport:
    """Fetch, forward and backward, agree, update, count."""
    started = time.perf_counter()
    plan, announced = parts.batches.next()
    whole = _over_replicas(parts, announced, time.perf_counter() - started)
    targets, work = whole.targets, whole.work
    rates = part_rates(parts.stage, stage_progress(parts.stage, state.step + 1, state.tokens + work.tokens))

    losses = Losses(mean=math.nan, sums=(math.nan,) * len(whole.by_source))
    update = Update(norm=0.0)
    skipped = _nothing_to_learn(targets, work, parts.stage)
    computed = skipped is None
    if computed:
        losses = forward_backward(parts, announced, targets)
        _note_work(parts)
        if math.isfinite(losses.mean):  # the same number everywhere: every rank comes here or none
            parts.schedule.board.tell("reduce")
            with parts.reducing.running():
                parts.optimizer.reduce_gradients()
            parts.schedule.board.tell("update")
            parts.optimizer.set_learning_rates(rates)
            update = parts.optimizer.step(parts.schedule.seconds)
        skipped = _not_finite(losses.mean, update.norm, targets)
        if skipped:
            parts.optimizer.drop_gradients()
        _count_non_finite(state, skipped, parts.skip_non_finite)

    state.step += 1
    state.tokens += work.tokens
    state.samples += whole.samples
    state.bad += whole.bad
    state.skipped += skipped is not None
    return StepReport(
        loss=losses.mean,
        grad_norm=update.norm,
        part_norms=update.part_norms,
        rates=rates,
        targets=targets,
        samples=whole.samples,
        bad=whole.bad,
        work=work,
        computed=computed,
        skipped=skipped,
        plan=plan,
        sources=[
            SourceReport(counts=counts, loss=total / counts.targets if counts.targets else math.nan)
            for counts, total in zip(whole.by_source, losses.sums, strict=True)
        ],
        bubble=update.along[0] / update.along[1] if update.along else 0.0,
        data_seconds=whole.data_seconds,
        reading=whole.reading,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Whole:
    """Counts of a step over all replicas; fields are those of StepReport."""

    targets: int
    samples: int
    bad: int
    work: Work
    by_source: list[SourceCounts]
    data_seconds: float
    reading: ReadStats


def _over_replicas(parts: StepParts, announced: Announced, waited: float) -> _Whole:
    """One reduction for everything that replicas count.

    The number of targets is the loss's denominator: the whole step's and known before forward, so no split of the step
    changes a gradient. What metrics alone want comes along: under a kilobyte, 8 bytes a replica and 24 a source, while
    a reduction of its own would cost every step another round of messages.
    """
    groups = parts.groups
    counts = [announced.num_targets, announced.num_samples, announced.num_bad, *astuple(announced.work)]
    waits = [0.0] * groups.dp_size  # each replica knows its own; of the sums the largest is taken
    waits[groups.dp_rank] = waited
    of_sources = [number for counts in announced.by_source for number in counts]
    summed = iter(sum_over(groups.dp, [*counts, *of_sources, *waits, *parts.batches.stats().to_numbers()]))
    targets, samples, bad, *sizes = (int(next(summed)) for _ in counts)
    return _Whole(
        targets=targets,
        samples=samples,
        bad=bad,
        work=Work(**dict(zip(asdict(announced.work), sizes, strict=True))),
        by_source=[SourceCounts(*(int(next(summed)) for _ in counts)) for counts in announced.by_source],
        data_seconds=max(next(summed) for _ in waits),
        reading=ReadStats.from_numbers(list(summed)),
    )


def _note_work(parts: StepParts) -> None:
    """Count what this rank's own work took. Of reduction and update it is the step before's: the device is through that
    by now, and need not be waited for."""
    spent = parts.schedule.board.spent
    spent.add("data", parts.batches.waited)
    spent.add("reduce", parts.reducing.take())
    spent.add("update", parts.optimizer.updating.take())


def _nothing_to_learn(targets: int, work: Work, stage: StageConfig) -> str | None:
    """Why no rank has anything to do, from counts that all of them share."""
    if targets == 0:
        return "no token is supervised"
    if work.patches == 0 and "language" not in stage.trainable:
        return "no picture or clip, and the language part is frozen"
    return None


def _not_finite(loss: float, grad_norm: float, targets: int) -> str | None:
    if not math.isfinite(loss):
        return f"loss is {loss} over {targets} supervised tokens"
    if not math.isfinite(grad_norm):
        return f"gradient norm is {grad_norm} at loss {loss:.4f}"
    return None


def _count_non_finite(state: TrainState, fault: str | None, limit: int) -> None:
    """Raises NonFiniteStep, on every rank, once `limit` steps in a row have been left out."""
    if fault is None:
        state.non_finite_in_row = 0
        return
    if state.non_finite_in_row >= limit:
        raise NonFiniteStep(
            f"step {state.step + 1}: {fault}, after {state.non_finite_in_row} such steps in a row; no weight has been "
            f"updated by it. optimizer.skip_non_finite={limit} is how many may be left out in a row"
        )
    state.non_finite_in_row += 1


def forward_backward(parts: StepParts, announced: Announced, targets: int, forward_only: bool = False) -> Losses:
    """Run the step's microbatches; returns their loss over the step's `targets` supervised tokens, on every rank."""
    sources = torch.arange(len(announced.by_source), device=parts.groups.device).view(-1, 1)
    # DeepSpeed averages gradients over the data axis, so the loss of a replica is scaled up by its size.
    scale = parts.groups.dp_size / targets

    def loss(row: Row, token_losses: Tensor) -> tuple[Tensor, Tensor]:
        if parts.listen is not None:
            parts.listen(row, token_losses)
        learnt = token_losses * (row.targets >= 0)
        total = learnt.sum()
        # Sums by mask rather than by index: those are added in another order each time on a GPU.
        by_source = torch.where(row.sources == sources, learnt.detach(), 0.0).sum(dim=1)
        return total * scale, torch.cat((total.detach().view(1), by_source))

    sums = parts.schedule.run(announced.rows, announced.lengths, loss, forward_only=forward_only)
    parts.schedule.board.tell("agree")
    replica = [0.0] * (1 + len(announced.by_source))
    if parts.groups.is_last_pipeline_stage:
        replica = torch.stack(sums).double().sum(dim=0).tolist()
    total, *by_source = sum_over(parts.groups.dp, from_last_pipeline_stage(parts.groups, replica))
    return Losses(mean=total / targets, sums=tuple(by_source))
