"""One optimizer step. World size 1, every layout and every stage run this same function."""

import math
import time
from dataclasses import asdict, astuple, dataclass

from torch import Tensor

from data.loading.rows import ReadStats
from data.plan.plan import StepPlan
from model.flops import Work
from model.vlm import Row
from parallel.collectives import from_last_pipeline_stage, sum_over
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.zero import ZeroOptimizer
from train.batches import Announced, Batches
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


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did, the same on every rank but for the last two, which are right on ranks that read."""

    loss: float
    """Mean over the supervised tokens of the whole step; nan where there was nothing to learn."""
    grad_norm: float
    """Before clipping; 0 where no gradient was taken."""
    rates: dict[str, float]
    targets: int
    samples: int
    bad: int
    """Samples that could not be decoded."""
    work: Work
    computed: bool
    """Whether forward and backward ran; they do not where there is nothing to learn."""
    skipped: str | None
    """Why the optimizer was left untouched, if it was."""
    plan: StepPlan
    data_seconds: float
    """Waiting for rows and sharing them, on the replica that waited longest."""
    reading: ReadStats
    """What readers have counted since the start, summed over replicas."""


def train_step(parts: StepParts, state: TrainState) -> StepReport:
    """Fetch, forward and backward, agree, update, count."""
    started = time.perf_counter()
    plan, announced = parts.batches.next()
    whole = _over_replicas(parts, announced, time.perf_counter() - started)
    targets, work = whole.targets, whole.work
    rates = part_rates(parts.stage, stage_progress(parts.stage, state.step + 1, state.tokens + work.tokens))

    loss, grad_norm = math.nan, 0.0
    skipped = _nothing_to_learn(targets, work, parts.stage)
    computed = skipped is None
    if computed:
        loss = forward_backward(parts, announced, targets)
        if math.isfinite(loss):  # the same number everywhere: every rank comes here or none
            parts.schedule.board.tell("reduce")
            parts.optimizer.reduce_gradients()
            parts.schedule.board.tell("update")
            parts.optimizer.set_learning_rates(rates)
            grad_norm = parts.optimizer.step()
        skipped = _not_finite(loss, grad_norm, targets)
        if skipped:
            parts.optimizer.drop_gradients()
        _count_non_finite(state, skipped, parts.skip_non_finite)

    state.step += 1
    state.tokens += work.tokens
    state.samples += whole.samples
    state.bad += whole.bad
    state.skipped += skipped is not None
    return StepReport(
        loss=loss,
        grad_norm=grad_norm,
        rates=rates,
        targets=targets,
        samples=whole.samples,
        bad=whole.bad,
        work=work,
        computed=computed,
        skipped=skipped,
        plan=plan,
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
    data_seconds: float
    reading: ReadStats


def _over_replicas(parts: StepParts, announced: Announced, waited: float) -> _Whole:
    """One reduction for everything that replicas count.

    The number of targets is the loss's denominator: the whole step's and known before forward, so no split of the step
    changes a gradient. What metrics alone want comes along: under a kilobyte and 8 bytes a replica, while a reduction
    of its own would cost every step another round of messages.
    """
    groups = parts.groups
    counts = [announced.num_targets, announced.num_samples, announced.num_bad, *astuple(announced.work)]
    waits = [0.0] * groups.dp_size  # each replica knows its own; of the sums the largest is taken
    waits[groups.dp_rank] = waited
    summed = iter(sum_over(groups.dp, [*counts, *waits, *parts.batches.stats().to_numbers()]))
    targets, samples, bad, *sizes = (int(next(summed)) for _ in counts)
    return _Whole(
        targets=targets,
        samples=samples,
        bad=bad,
        work=Work(**dict(zip(asdict(announced.work), sizes, strict=True))),
        data_seconds=max(next(summed) for _ in waits),
        reading=ReadStats.from_numbers(list(summed)),
    )


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


def forward_backward(parts: StepParts, announced: Announced, targets: int, forward_only: bool = False) -> float:
    """Run the step's microbatches; returns the mean loss over the step's `targets` supervised tokens, on every rank."""
    # DeepSpeed averages gradients over the data axis, so the loss of a replica is scaled up by its size.
    scale = parts.groups.dp_size / targets

    def loss(row: Row, token_losses: Tensor) -> tuple[Tensor, Tensor]:
        total = (token_losses * (row.targets >= 0)).sum()
        return total * scale, total.detach()

    sums = parts.schedule.run(announced.rows, announced.lengths, loss, forward_only=forward_only)
    parts.schedule.board.tell("agree")
    replica_sum = float(sum(sums)) if parts.groups.is_last_pipeline_stage else 0.0
    return sum_over(parts.groups.dp, from_last_pipeline_stage(parts.groups, [replica_sum]))[0] / targets
