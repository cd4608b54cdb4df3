"""One training stage on one layout over given rows, recorded tensor by tensor under canonical names."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

from data.loading.rows import ReadStats
from data.plan.plan import StepPlan
from model.build import BuiltModel, build_model
from model.config import LanguageConfig, ModelConfig, VisionConfig
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.world import model_parallel, pick_device
from parallel.zero import Update, ZeroOptimizer
from tests.harness.rows import PATCH_DIM, random_step
from train.batches import Announced, RowForm, announce
from train.config import OptimizerConfig, StageConfig
from train.optimizer import build_optimizer
from train.state import TrainState
from train.step import StepParts, train_step

MODEL = ModelConfig(
    name="layout proof",
    vision=VisionConfig(depth=2, embed_dim=64, num_heads=4),
    language=LanguageConfig(
        hidden_size=64,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=96,
        vocab_size=301,
        mrope_section=(2, 3, 3),
        tie_embeddings=True,
    ),
)
STAGES = {
    "stage1": ("vision", "merger"),
    "stage2": ("vision", "merger", "language"),
    "stage3": ("merger", "language"),
}
# eps 1e-6: with 1e-8 rounding of almost-zero gradients (key biases) decides the update's sign.
OPTIMIZER = OptimizerConfig(eps=1e-6, clip_norm=0.5)
NUM_ROWS = 4
NUM_STEPS = 5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(kw_only=True)
class Piece:
    """A rank's box of one canonical tensor."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: np.ndarray


@dataclass(kw_only=True)
class Record:
    """What one rank saw."""

    losses: list[float]
    norms: list[float]
    gradients: list[list[Piece]]
    """One list a step."""
    weights: list[Piece]
    frozen_with_gradient: list[str]
    """Canonical names of frozen tensors that had a gradient on this rank after some backward."""
    state_elements: int
    """Elements of Adam's first moments on this rank, as the optimizer holds them."""
    trainable_elements: int
    """Elements of this rank's trainable parameters, placeholders included."""


class GivenBatches:
    """Stands in for the data path: rows i, i + dp, ... of given steps, through the real announcement."""

    waited = 0.0

    def __init__(self, steps: list[list[Any]], groups: Groups, form: RowForm) -> None:
        self._steps = iter(steps)
        self._groups = groups
        self._form = form

    def next(self) -> tuple[StepPlan, Announced]:
        rows = next(self._steps)
        mine = rows[self._groups.dp_rank :: self._groups.dp_size]
        packed = mine if self._groups.is_reader else None
        return SimpleNamespace(), announce(packed, len(mine), self._groups, self._form)  # type: ignore[return-value]

    def stats(self) -> ReadStats:
        return ReadStats()


def train_on_layout(
    parallel: ParallelConfig,
    stage: str,
    *,
    model: ModelConfig = MODEL,
    steps: list[list[Any]] | None = None,
    precision: str = "fp32",
    std: float = 0.05,
    changes: dict[str, Any] | None = None,
) -> Record:
    """Train a few steps on this rank of the current world; run it on every rank."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, stage, groups, model=model, steps=steps, precision=precision, std=std, changes=changes)
        return record_steps(made)


@dataclass(kw_only=True)
class Stage:
    """A training stage on this rank, ready for `train_step`."""

    built: BuiltModel
    optimizer: ZeroOptimizer
    parts: StepParts
    groups: Groups
    num_steps: int


def start(
    parallel: ParallelConfig,
    stage: str,
    groups: Groups,
    *,
    model: ModelConfig = MODEL,
    steps: list[list[Any]] | None = None,
    precision: str = "fp32",
    std: float = 0.05,
    changes: dict[str, Any] | None = None,
    bucket_elements: int = 100_000,
) -> Stage:
    """Build one training stage over given rows (default: 5 uneven steps) with every weight filled by its name.

    `changes` are fields of its StageConfig that are to be otherwise. Buckets of the reduction are so small that even
    these models fill several.
    """
    built = filled_model(parallel, stage, groups, model=model, precision=precision, std=std)
    run = SimpleNamespace(
        stage=stage_config(stage, changes),
        optimizer=OPTIMIZER,
        parallel=replace(parallel, reduce_bucket_elements=bucket_elements),
        precision=precision,
    )
    optimizer = build_optimizer(run, built, groups)  # type: ignore[arg-type]
    optimizer.masters_from_weights()
    multiple = parallel.tensor if parallel.sequence_parallel else 1
    form = RowForm(dtype=_DTYPES[precision], patch_dim=PATCH_DIM, multiple=multiple)
    if steps is None:
        steps = [random_step(100 + step, NUM_ROWS, model.language.vocab_size) for step in range(NUM_STEPS)]
    parts = StepParts(
        batches=GivenBatches(steps, groups, form),  # type: ignore[arg-type]
        schedule=Schedule(built.module.chunks, groups),
        optimizer=optimizer,
        groups=groups,
        stage=run.stage,
    )
    return Stage(built=built, optimizer=optimizer, parts=parts, groups=groups, num_steps=len(steps))


def filled_model(
    parallel: ParallelConfig,
    stage: str,
    groups: Groups,
    *,
    model: ModelConfig = MODEL,
    precision: str = "fp32",
    std: float = 0.05,
) -> BuiltModel:
    """This rank's pipeline stage with every weight filled by its name, and frozen as the training stage says."""
    built = build_model(model, parallel, groups, _DTYPES[precision], STAGES[stage])
    for name, parameter in built.module.named_parameters():
        _fill(parameter, built.boxes[name], std)
    return built


def stage_config(stage: str, changes: dict[str, Any] | None = None) -> StageConfig:
    """One rate for all, the same at every step. `changes` are fields that are to be otherwise."""
    plain = StageConfig(
        name=stage,
        trainable=STAGES[stage],
        learning_rates=dict.fromkeys(STAGES[stage], 1e-4),
        steps=NUM_STEPS,
        warmup=0.0,
        schedule="constant",
    )
    return replace(plain, **(changes or {}))


def record_steps(made: Stage) -> Record:
    """Take the steps that `made` was started with."""
    groups = made.groups
    built, optimizer = made.built, made.optimizer
    frozen_with_gradient: set[str] = set()
    record = Record(
        losses=[],
        norms=[],
        gradients=[],
        weights=[],
        frozen_with_gradient=[],
        state_elements=sum(state["exp_avg"].numel() for state in optimizer._adamw.state.values()),
        trainable_elements=sum(p.numel() for p in built.module.parameters() if p.requires_grad),
    )
    update = optimizer.step

    def capture_then_update(*along: Any) -> Update:
        record.gradients.append(pieces(built, groups, lambda p: safe_get_full_grad(p), trainable_only=True))
        for name, parameter in built.module.named_parameters():
            # By the stage's own words: a part that nobody froze has `requires_grad` like a trained one.
            part = built.boxes[name].name.partition(".")[0] if name in built.boxes else None
            frozen = part is not None and part not in made.parts.stage.trainable
            if frozen and parameter.grad is not None:
                frozen_with_gradient.add(built.boxes[name].name)
        return update(*along)

    optimizer.step = capture_then_update  # type: ignore[method-assign]
    state = TrainState()
    for _ in range(made.num_steps):
        report = train_step(made.parts, state)
        record.losses.append(report.loss)
        record.norms.append(report.grad_norm)
    record.weights = pieces(built, groups, lambda p: p.detach())
    record.frozen_with_gradient = sorted(frozen_with_gradient)
    optimizer.close()
    return record


def first_weight(name: str, shape: tuple[int, ...], std: float = 0.05) -> torch.Tensor:
    """The whole canonical tensor that `start` fills in: random everywhere, norms around 1 and biases too, because
    zeros and ones would hide swapped tensors."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
    whole = torch.empty(shape).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    return whole + 1.0 if "norm" in name and name.endswith("weight") else whole


def _fill(parameter: torch.nn.Parameter, box: Any, std: float) -> None:
    whole = first_weight(box.name, box.global_shape, std)
    for dim, (start, length) in enumerate(zip(box.offset, box.shape, strict=True)):
        whole = whole.narrow(dim, start, length)
    with torch.no_grad():
        parameter.zero_()
        box.view(parameter).copy_(whole)


def pieces(
    built: BuiltModel, groups: Groups, value: Callable[[torch.nn.Parameter], Any], trainable_only: bool = False
) -> list[Piece]:
    """This rank's boxes. Weights come from every copy; of gradients the reduced ones from one data rank suffice."""
    found = []
    for name, parameter in built.module.named_parameters():
        if name not in built.boxes or (trainable_only and not parameter.requires_grad):
            continue
        tensor = value(parameter)  # a collective over the data axis for gradients: before any rank turns away
        box = built.boxes[name]
        if not trainable_only or (groups.dp_rank == 0 and box.owner):
            found.append(
                Piece(
                    name=box.name,
                    shape=box.global_shape,
                    offset=box.offset,
                    values=box.view(tensor.contiguous()).float().cpu().numpy().copy(),
                )
            )
    return found
