"""How far bf16 is from fp32, in our model and in transformers' with the same weights and samples; and what of a bf16
run is summed in fp32."""

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.build import build_model
from parallel.config import ParallelConfig
from parallel.schedule import Schedule
from parallel.world import model_parallel, pick_device
from parallel.zero import Update
from tests.harness.filling import fill_from
from tests.harness.layouts import MODEL, STAGES, start
from tests.harness.parity import CASES, random_transformers_model, run_transformers
from tests.harness.rows import PATCH_DIM, pack, random_sample, random_step
from train.batches import RowForm, announce
from train.state import TrainState
from train.step import train_step


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


def reduction_error(parallel: ParallelConfig) -> float:
    """Relative error of the tensor farthest off, of this rank's gradients after they were completed and reduced in a
    bf16 run, against sums of every rank's own in fp64."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups, precision="bf16", steps=[random_step(100, 4, 301)])
        optimizer, named = made.optimizer, made.built.trainable()
        reduce, errors = optimizer.reduce_gradients, []

        def reduce_and_compare() -> None:
            own = {name: optimizer.gradient(parameter).double() for name, parameter in named}
            reduce()
            for name, parameter in named:
                due = own[name]
                if groups.tp_size > 1 and getattr(parameter, "sequence_parallel", False):
                    dist.all_reduce(due, group=groups.tp)
                if getattr(parameter, "shared_embedding", False):
                    dist.all_reduce(due, group=groups.tied)
                dist.all_reduce(due, group=groups.dp)
                if due.any():  # not a placeholder
                    errors.append(_relative(optimizer.gradient(parameter), due / groups.dp_size))

        optimizer.reduce_gradients = reduce_and_compare  # type: ignore[method-assign]
        train_step(made.parts, TrainState())
        optimizer.close()
    return max(errors)


def accumulation_error(microbatches: int) -> float:
    """Relative error of the tensor farthest off, of gradients that a bf16 step of equal microbatches has summed,
    against that of one of them by itself.

    Each has 1/n of the single one's gradient. With n a power of two that is exact in bf16, and so is the sum in fp32.
    """
    (row,) = random_step(100, 1, 301)
    taken: list[dict[str, Tensor]] = []
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = start(ParallelConfig(), "stage2", groups, precision="bf16", steps=[[row], [row] * microbatches])
        optimizer = made.optimizer

        def take_and_drop(*_: Any) -> Update:
            taken.append({name: optimizer.gradient(p).clone() for name, p in made.built.trainable()})
            optimizer.drop_gradients()
            return Update(norm=0.0)

        optimizer.step = take_and_drop  # type: ignore[method-assign]
        for _ in range(2):
            train_step(made.parts, TrainState())
        optimizer.close()
    alone, summed = taken
    return max(_relative(summed[name], gradient) for name, gradient in alone.items() if gradient.any())


def loss_error() -> float:
    """Relative error of the loss that a bf16 step tells, against the fp64 sum of its token losses."""
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = start(ParallelConfig(), "stage2", groups, precision="bf16", steps=[random_step(100, 4, 301)])
        run, total = made.parts.schedule.run, 0.0

        def run_and_add(microbatches: Any, lengths: Any, loss: Any, **more: Any) -> list[Tensor]:
            def add(row: Any, token_losses: Tensor) -> Any:
                nonlocal total
                total += float(token_losses.detach().double()[row.targets >= 0].sum())
                return loss(row, token_losses)

            return run(microbatches, lengths, add, **more)

        made.parts.schedule.run = run_and_add  # type: ignore[method-assign]
        report = train_step(made.parts, TrainState())
        made.optimizer.close()
    return abs(report.loss * report.targets / total - 1)


def wrong_dtypes(precision: str) -> list[str]:
    """Names of weights, and of layers whose output, that have another dtype in a step than the recipe's precision."""
    asked = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    wrong: set[str] = set()
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = start(ParallelConfig(), "stage2", groups, precision=precision, steps=[random_step(100, 4, 301)])

        def look(name: str) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                wrong.update([name] if hidden.dtype != asked else [])

            return hook

        for name, module in made.built.module.named_modules():
            if (name.rpartition(".")[2].isdigit() and "layers" in name) or name.endswith("merger"):
                module.register_forward_hook(look(name))
        train_step(made.parts, TrainState())
        wrong.update(name for name, parameter in made.built.module.named_parameters() if parameter.dtype != asked)
        made.optimizer.close()
    return sorted(wrong)
