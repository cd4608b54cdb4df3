"""One optimizer step. World size 1, every layout and every stage run this same function."""

import math
import time
from dataclasses import asdict, astuple, dataclass

from torch import Tensor

from data.plan import StepPlan
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
    """Loss or gradient norm is not a number; no rank has updated its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepParts:
    """What a step is made of."""

    batches: Batches
    schedule: Schedule
    optimizer: ZeroOptimizer
    groups: Groups
    stage: StageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did, the same on every rank."""

    loss: float
    """Mean over the supervised tokens of the whole step; nan when skipped."""
    grad_norm: float
    rates: dict[str, float]
    targets: int
    samples: int
    work: Work
    skipped: bool
    plan: StepPlan
    data_seconds: float
    """Waiting for rows and sharing them."""


def train_step(parts: StepParts, state: TrainState) -> StepReport:
    """Fetch, forward and backward, agree, update, count."""
    started = time.perf_counter()
    plan, announced = parts.batches.next()
    data_seconds = time.perf_counter() - started
    # The denominator is the whole step's and known before forward, so no split of the step changes a gradient.
    counts = [announced.num_targets, announced.num_samples, *astuple(announced.work)]
    targets, samples, *sizes = (int(count) for count in sum_over(parts.groups.dp, counts))
    work = Work(**dict(zip(asdict(announced.work), sizes, strict=True)))
    rates = part_rates(parts.stage, stage_progress(parts.stage, state.step + 1, state.tokens + work.tokens))

    loss, grad_norm = math.nan, 0.0
    learns = targets > 0 and (work.patches > 0 or "language" in parts.stage.trainable)
    if learns:
        loss = forward_backward(parts, announced, targets)
        if not math.isfinite(loss):  # the same number everywhere: every rank leaves here or none
            parts.optimizer.drop_gradients()
            raise NonFiniteStep(f"step {state.step + 1}: loss is {loss} over {targets} supervised tokens")
        parts.optimizer.reduce_gradients()
        parts.optimizer.set_learning_rates(rates)
        grad_norm = parts.optimizer.step()
        if not math.isfinite(grad_norm):
            raise NonFiniteStep(f"step {state.step + 1}: gradient norm is {grad_norm} at loss {loss:.4f}")

    state.step += 1
    state.tokens += work.tokens
    state.samples += samples
    state.skipped += not learns
    return StepReport(
        loss=loss,
        grad_norm=grad_norm,
        rates=rates,
        targets=targets,
        samples=samples,
        work=work,
        skipped=not learns,
        plan=plan,
        data_seconds=data_seconds,
    )


def forward_backward(parts: StepParts, announced: Announced, targets: int, forward_only: bool = False) -> float:
    """Run the step's microbatches; returns the mean loss over the step's `targets` supervised tokens, on every rank."""
    # DeepSpeed averages gradients over the data axis, so the loss of a replica is scaled up by its size.
    scale = parts.groups.dp_size / targets

    def loss(row: Row, token_losses: Tensor) -> tuple[Tensor, Tensor]:
        total = (token_losses * (row.targets >= 0)).sum()
        return total * scale, total.detach()

    sums = parts.schedule.run(announced.rows, announced.lengths, loss, forward_only=forward_only)
    replica_sum = float(sum(sums)) if parts.groups.is_last_pipeline_stage else 0.0
    return sum_over(parts.groups.dp, from_last_pipeline_stage(parts.groups, [replica_sum]))[0] / targets
