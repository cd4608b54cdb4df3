"""The global norm that a step tells and clips by, beside the norm of the whole model's gradients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from deepspeed.utils import safe_get_full_grad, safe_get_full_optimizer_state

from model.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from parallel.zero import Update
from tests.harness.compare import assemble, tensor_errors
from tests.harness.layouts import MODEL, NUM_ROWS, OPTIMIZER, Piece, pieces, start
from tests.harness.rows import random_step
from train.state import TrainState
from train.step import train_step


@dataclass(kw_only=True)
class FirstUpdate:
    """The first update of a run, as one rank saw it."""

    norm: float
    gradients: list[Piece]
    """Before clipping."""
    moments: list[Piece]
    """Adam's first ones, after the update: (1 - beta1) of the clipped gradients."""


def first_update(parallel: ParallelConfig, precision: str, model: ModelConfig = MODEL) -> FirstUpdate:
    """One step of stage 2 on this rank; run it on every rank."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        steps = [random_step(100, NUM_ROWS, model.language.vocab_size)]
        made = start(parallel, "stage2", groups, model=model, steps=steps, precision=precision)
        update = made.optimizer.step
        gradients: list[Piece] = []

        def capture_then_update(*along: Any) -> Update:
            gradients.extend(pieces(made.built, groups, safe_get_full_grad, trainable_only=True))
            return update(*along)

        made.optimizer.step = capture_then_update  # type: ignore[method-assign]
        norm = train_step(made.parts, TrainState()).grad_norm
        moments = pieces(made.built, groups, lambda p: safe_get_full_optimizer_state(p, "exp_avg"), trainable_only=True)
        made.optimizer.close()
    return FirstUpdate(norm=norm, gradients=gradients, moments=moments)


def norm_and_clip_errors(ranks: list[FirstUpdate]) -> tuple[float, float]:
    """Relative errors of the norm on the rank farthest off, and of the clipped gradient of the tensor farthest off.

    Each place of the whole model counts once, whatever ranks hold it.
    """
    whole = assemble([rank.gradients for rank in ranks])
    total = float(np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in whole.values())))
    assert total > 2 * OPTIMIZER.clip_norm, "nothing would be clipped"
    share = (1 - OPTIMIZER.betas[0]) * OPTIMIZER.clip_norm / total
    due = {name: value * np.float32(share) for name, value in whole.items()}
    errors = tensor_errors(due, assemble([rank.moments for rank in ranks], due), floor=1e-6 * total * share)
    return max(abs(rank.norm / total - 1) for rank in ranks), max(errors.values())
