"""How far bf16 is from fp32, in our model and in transformers' with the same weights and samples."""

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.build import build_model
from parallel.config import ParallelConfig
from parallel.schedule import Schedule
from parallel.world import model_parallel, pick_device
from tests.harness.filling import fill_from
from tests.harness.layouts import MODEL, STAGES
from tests.harness.parity import CASES, random_transformers_model, run_transformers
from tests.harness.rows import PATCH_DIM, pack, random_sample
from train.batches import RowForm, announce


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Errors of a bf16 run against fp32, relative, by norm over all there is."""

    token_losses: float
    logits: float
    gradient: float


def measure_rounding(seed: int, std: float) -> tuple[Rounding, Rounding]:
    """(ours, transformers') on a packed row of pictures, clips and text; all weights are bf16 numbers to begin with."""
    generator = np.random.default_rng(seed)
    samples = [random_sample(generator, MODEL.language.vocab_size, grids) for grids in CASES["a packed row of all"]]
    reference = random_transformers_model(MODEL, seed, std)
    reference.bfloat16().float()
    exact = _theirs(reference, samples)
    with tempfile.TemporaryDirectory() as folder, model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        reference.save_pretrained(folder)
        built = build_model(MODEL, ParallelConfig(), groups, torch.bfloat16, STAGES["stage2"])
        fill_from(built, folder)
        form = RowForm(dtype=torch.bfloat16, patch_dim=PATCH_DIM, multiple=1)
        announced = announce([pack(samples)], 1, groups, form)
        with torch.no_grad():
            logits = built.module.chunks[0](announced.rows[0], with_loss=False)[0]
        kept: list[Tensor] = []

        def loss(row: Any, token_losses: Tensor) -> tuple[Tensor, Tensor]:
            supervised = row.targets >= 0
            kept.append(token_losses.detach()[supervised])
            mean = (token_losses * supervised).sum() / supervised.sum()
            return mean, mean.detach()

        Schedule(built.module.chunks, groups).run(announced.rows, announced.lengths, loss)
        gradients = {
            built.boxes[name].name: built.boxes[name].view(p.grad)
            for name, p in built.module.named_parameters()
            if p.grad is not None
        }
    ours = _errors((kept[0], logits, gradients), exact)
    return ours, _errors(_theirs(reference.bfloat16(), samples), exact)


Run = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Losses of supervised tokens, logits, gradients by canonical name."""


def _theirs(reference: Any, samples: list[Any]) -> Run:
    _, logits, gradients = run_transformers(reference, MODEL, samples)
    targets = torch.from_numpy(np.concatenate([sample["targets"] for sample in samples]))
    losses = F.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="none")[targets >= 0]
    return losses, logits, gradients


def _errors(run: Run, exact: Run) -> Rounding:
    total = sum(float(g.double().square().sum()) for g in exact[2].values())
    assert run[2].keys() == exact[2].keys()
    wrong = sum(float((run[2][name].double() - g.double()).square().sum()) for name, g in exact[2].items())
    return Rounding(
        token_losses=_relative(run[0], exact[0]), logits=_relative(run[1], exact[1]), gradient=(wrong / total) ** 0.5
    )


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
