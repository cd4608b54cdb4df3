"""The steps of one process without our schedule and without DeepSpeed: autograd, torch's AdamW, zeros for a gradient
that a step did not give."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.config import IGNORE
from data.types import PackedRow
from model.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, OPTIMIZER, Record, filled_model, pieces, stage_config
from tests.harness.rows import PATCH_DIM
from train.batches import RowForm, announce
from train.optimizer import is_vector


def train_plainly(
    stage: str, steps: list[list[PackedRow]], *, model: ModelConfig = MODEL, changes: dict[str, Any] | None = None
) -> Record:
    """What `train_on_layout` records, in a world of one process and fp32; every step must have a supervised token."""
    alone = ParallelConfig()
    with model_parallel(alone, pick_device(), seed=0) as groups:
        built = filled_model(alone, stage, groups, model=model)
        config = stage_config(stage, changes)
        trained = built.trainable()
        adamw = torch.optim.AdamW(
            [
                {
                    "params": [parameter],
                    "lr": config.learning_rates[part := built.boxes[name].name.partition(".")[0]],
                    "weight_decay": 0.0
                    if is_vector(built.boxes[name].name)
                    else config.weight_decays.get(part, OPTIMIZER.weight_decay),
                }
                for name, parameter in trained
            ],
            betas=OPTIMIZER.betas,
            eps=OPTIMIZER.eps,
        )
        record = Record(
            losses=[],
            norms=[],
            gradients=[],
            weights=[],
            frozen_with_gradient=[],
            state_elements=0,
            trainable_elements=sum(parameter.numel() for _, parameter in trained),
        )
        for rows in steps:
            for _, parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            record.losses.append(_backward(built.module.chunks[0], rows, groups))
            record.gradients.append(pieces(built, groups, _gradient, trainable_only=True))
            norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], OPTIMIZER.clip_norm)
            record.norms.append(float(norm))
            adamw.step()
        record.weights = pieces(built, groups, lambda parameter: parameter.detach())
        return record


def _backward(model: torch.nn.Module, rows: list[PackedRow], groups: Groups) -> float:
    announced = announce(rows, len(rows), groups, RowForm(dtype=torch.float32, patch_dim=PATCH_DIM, multiple=1))
    num_targets = sum(int((row.targets >= 0).sum()) for row in rows)
    total = 0.0
    for row, packed in zip(announced.rows, rows, strict=True):
        # Logits of every place and targets as they were packed: the choice of places is the trainer's own.
        targets = torch.from_numpy(packed.targets)
        logits = model(row, with_loss=False)[0, : len(targets)]
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") / num_targets
        if loss.requires_grad:  # nothing below a frozen language model learns from text
            loss.backward()
        total += float(loss)
    return total


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
