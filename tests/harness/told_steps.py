"""What a step tells of itself on a layout, beside what is due, computed with none of its sums."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from deepspeed.utils import safe_get_full_grad

from data.config import IGNORE
from data.types import PackedRow
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from parallel.zero import Update
from tests.harness.compare import assemble
from tests.harness.layouts import MODEL, NUM_ROWS, GivenBatches, Piece, Stage, pieces, start
from tests.harness.rows import random_step
from train import step as stepping
from train.state import TrainState
from train.step import train_step

SOURCES = 4
"""The last has no sample."""


@dataclass(kw_only=True)
class Told:
    """One step, as one rank told it."""

    loss: float
    norm: float
    part_norms: dict[str, float]
    losses: list[float]
    """By source."""
    counts: list[tuple[int, ...]]
    """Samples, tokens and targets, by source."""
    bubble: float
    gradients: list[Piece]
    """That this rank holds, before clipping."""


def mixed_rows(count: int = NUM_ROWS) -> list[PackedRow]:
    """The rows of a step, whose samples are of sources 0 to 2 in turn."""
    rows, place = [], 0
    for row in random_step(100, count, MODEL.language.vocab_size):
        own = np.arange(place, place + len(row.segment_lengths)) % (SOURCES - 1)
        rows.append(replace(row, source_ids=own))
        place += len(own)
    return rows


def told_step(parallel: ParallelConfig, stage: str = "stage2", precision: str = "fp32", rows: int = NUM_ROWS) -> Told:
    """One step of a training stage on this rank; run it on every rank."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = _start(parallel, stage, groups, precision, [mixed_rows(rows)])
        update = made.optimizer.step
        gradients: list[Piece] = []

        def capture_then_update(*along: Any) -> Update:
            gradients.extend(pieces(made.built, groups, safe_get_full_grad, trainable_only=True))
            return update(*along)

        made.optimizer.step = capture_then_update  # type: ignore[method-assign]
        # Looked up at the call: a planted defect replaces it.
        report = stepping.train_step(made.parts, TrainState())
        made.optimizer.close()
    return Told(
        loss=report.loss,
        norm=report.grad_norm,
        part_norms=report.part_norms,
        losses=[source.loss for source in report.sources],
        counts=[tuple(source.counts) for source in report.sources],
        bubble=report.bubble,
        gradients=gradients,
    )


def losses_alone(stage: str = "stage2") -> list[float]:
    """The loss of steps in which one source alone is supervised, source after source; run it in a world of one."""
    losses = []
    for source in range(SOURCES - 1):
        rows = [
            replace(
                row, targets=np.where(np.repeat(row.source_ids, row.segment_lengths) == source, row.targets, IGNORE)
            )
            for row in mixed_rows()
        ]
        with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
            made = _start(ParallelConfig(), stage, groups, "fp32", [rows])
            losses.append(train_step(made.parts, TrainState()).loss)
            made.optimizer.close()
    return losses


def counts_due() -> list[tuple[int, ...]]:
    """Samples, tokens and targets of each source in `mixed_rows`."""
    due = []
    for source in range(SOURCES):
        samples = tokens = targets = 0
        for row in mixed_rows():
            ends = np.cumsum(row.segment_lengths)
            for own, end, length in zip(row.source_ids, ends, row.segment_lengths, strict=True):
                if own == source:
                    samples, tokens = samples + 1, tokens + int(length)
                    targets += int((row.targets[end - length : end] >= 0).sum())
        due.append((samples, tokens, targets))
    return due


def part_norms_due(ranks: Sequence[Told]) -> dict[str, float]:
    """Norm of each part of the whole model's gradient, each place once, whatever ranks hold it."""
    whole = assemble([rank.gradients for rank in ranks])
    squares: dict[str, float] = {}
    for name, value in whole.items():
        part = name.partition(".")[0]
        squares[part] = squares.get(part, 0.0) + float(np.sum(np.square(value, dtype=np.float64)))
    return {part: float(np.sqrt(square)) for part, square in squares.items()}


def norm_error(ranks: Sequence[Told], due: dict[str, float]) -> float:
    """Largest relative error of a part's norm on any rank; infinite if a rank has other parts."""
    if any(rank.part_norms.keys() != due.keys() for rank in ranks):
        return float("inf")
    return max(abs(rank.part_norms[part] / norm - 1) for rank in ranks for part, norm in due.items())


def loss_error(ranks: Sequence[Told], due: Sequence[float]) -> float:
    """The same of the losses of sources, and of their sum by targets beside the step's loss."""
    errors = [abs(rank.losses[source] / loss - 1) for rank in ranks for source, loss in enumerate(due)]
    for rank in ranks:
        held = [(loss, counts[2]) for loss, counts in zip(rank.losses, rank.counts, strict=True) if counts[2]]
        mean = sum(loss * targets for loss, targets in held) / sum(targets for _, targets in held)
        errors.append(abs(mean / rank.loss - 1))
    return max(errors) if np.isfinite(errors).all() else float("inf")


def _start(parallel: ParallelConfig, stage: str, groups: Any, precision: str, steps: list[list[PackedRow]]) -> Stage:
    made = start(parallel, stage, groups, precision=precision, steps=steps)
    batches = made.parts.batches
    assert isinstance(batches, GivenBatches)
    form = replace(batches._form, sources=SOURCES)
    made.parts = replace(made.parts, batches=GivenBatches(steps, groups, form))  # type: ignore[arg-type]
    return made
