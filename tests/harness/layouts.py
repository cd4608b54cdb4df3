"""One training stage on one layout over given rows, recorded tensor by tensor under canonical names."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

from data.plan import StepPlan
from model.build import BuiltModel, build_model
from model.config import LanguageConfig, ModelConfig, VisionConfig
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.world import model_parallel, pick_device
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
NUM_ROWS = 4
NUM_STEPS = 5


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
    optimizer_parameters: list[str]
    """Canonical names of parameters with optimizer state on this rank."""


class GivenBatches:
    """Stands in for the data path: rows i, i + dp, ... of given steps, through the real announcement."""

    def __init__(self, steps: list[list[Any]], groups: Groups, form: RowForm) -> None:
        self._steps = iter(steps)
        self._groups = groups
        self._form = form

    def next(self) -> tuple[StepPlan, Announced]:
        rows = next(self._steps)
        mine = rows[self._groups.dp_rank :: self._groups.dp_size]
        packed = mine if self._groups.is_reader else None
        return SimpleNamespace(), announce(packed, len(mine), self._groups, self._form)  # type: ignore[return-value]


def train_on_layout(
    parallel: ParallelConfig,
    stage: str,
    *,
    model: ModelConfig = MODEL,
    steps: list[list[Any]] | None = None,
    plant: Callable[[], Callable[[], None]] | None = None,
    precision: str = "fp32",
) -> Record:
    """Train a few steps on this rank of the current world; run it on every rank.

    `plant` breaks something in this process and returns how to mend it again.
    """
    mend = plant() if plant is not None else lambda: None
    try:
        with model_parallel(parallel, pick_device(), seed=0) as groups:
            return _train(parallel, stage, model, steps, groups, precision)
    finally:
        mend()


def _train(
    parallel: ParallelConfig,
    stage: str,
    model: ModelConfig,
    steps: list[list[Any]] | None,
    groups: Groups,
    precision: str,
) -> Record:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    built = build_model(model, parallel, groups, dtype, STAGES[stage])
    for name, parameter in built.module.named_parameters():
        _fill(parameter, built.boxes[name], std=0.05)
    run = SimpleNamespace(
        stage=StageConfig(
            name=stage,
            trainable=STAGES[stage],
            learning_rates=dict.fromkeys(STAGES[stage], 1e-4),
            steps=NUM_STEPS,
            warmup=0.0,
            schedule="constant",
        ),
        # eps 1e-6: with 1e-8 rounding of almost-zero gradients (key biases) decides the update's sign.
        optimizer=OptimizerConfig(eps=1e-6, clip_norm=0.5),
        parallel=replace(parallel, reduce_bucket_elements=100_000),
        precision=precision,
    )
    optimizer = build_optimizer(run, built, groups)  # type: ignore[arg-type]
    optimizer.masters_from_weights()
    multiple = parallel.tensor if parallel.sequence_parallel else 1
    form = RowForm(dtype=dtype, patch_dim=PATCH_DIM, multiple=multiple)
    if steps is None:
        steps = [random_step(100 + step, NUM_ROWS, model.language.vocab_size) for step in range(NUM_STEPS)]
    parts = StepParts(
        batches=GivenBatches(steps, groups, form),  # type: ignore[arg-type]
        schedule=Schedule(built.module, groups),
        optimizer=optimizer,
        groups=groups,
        stage=run.stage,
    )
    record = Record(losses=[], norms=[], gradients=[], weights=[], optimizer_parameters=[])
    update = optimizer.step

    def capture_then_update() -> float:
        record.gradients.append(_pieces(built, groups, lambda p: safe_get_full_grad(p), trainable_only=True))
        return update()

    optimizer.step = capture_then_update  # type: ignore[method-assign]
    state = TrainState()
    for _ in steps:
        report = train_step(parts, state)
        record.losses.append(report.loss)
        record.norms.append(report.grad_norm)
    record.weights = _pieces(built, groups, lambda p: p.detach())
    record.optimizer_parameters = sorted({built.boxes[f.param_name].name for f in optimizer.fragments()})
    optimizer.close()
    return record


def _fill(parameter: torch.nn.Parameter, box: Any, std: float) -> None:
    """Random everywhere, norms around 1 and biases too: zeros and ones would hide swapped tensors."""
    seed = int.from_bytes(hashlib.blake2b(box.name.encode(), digest_size=4).digest(), "little")
    whole = torch.empty(box.global_shape).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    if "norm" in box.name and box.name.endswith("weight"):
        whole += 1.0
    for dim, (start, length) in enumerate(zip(box.offset, box.shape, strict=True)):
        whole = whole.narrow(dim, start, length)
    with torch.no_grad():
        parameter.zero_()
        box.view(parameter).copy_(whole)


def _pieces(
    built: BuiltModel, groups: Groups, value: Callable[[torch.nn.Parameter], Any], trainable_only: bool = False
) -> list[Piece]:
    found = []
    for name, parameter in built.module.named_parameters():
        if name not in built.boxes or (trainable_only and not parameter.requires_grad):
            continue
        tensor = value(parameter)  # a collective over the data axis for gradients: before any rank turns away
        box = built.boxes[name]
        if groups.dp_rank == 0 and box.owner:
            found.append(
                Piece(
                    name=box.name,
                    shape=box.global_shape,
                    offset=box.offset,
                    values=box.view(tensor.contiguous()).float().cpu().numpy().copy(),
                )
            )
    return found


def assemble(per_rank: list[list[Piece]]) -> dict[str, np.ndarray]:
    """Whole tensors from every rank's boxes; a place that no rank holds stays nan."""
    whole: dict[str, np.ndarray] = {}
    for pieces in per_rank:
        for piece in pieces:
            target = whole.setdefault(piece.name, np.full(piece.shape, np.nan, dtype=np.float32))
            places = tuple(
                slice(start, start + size) for start, size in zip(piece.offset, piece.values.shape, strict=True)
            )
            target[places] = piece.values
    return whole


@dataclass(kw_only=True)
class Difference:
    """Largest relative differences between two runs, each a share of the reference."""

    loss: float
    norm: float
    gradient: float
    weight: float
    worst: str

    @property
    def largest(self) -> float:
        return max(self.loss, self.norm, self.gradient, self.weight)


def compare(reference: list[Record], other: list[Record]) -> Difference:
    """Compare two layouts: loss, norm and every tensor's gradient at each step, and every weight tensor at the end."""
    worst = (0.0, "nothing")
    loss = _largest_relative(reference[0].losses, other[0].losses)
    norm = _largest_relative(reference[0].norms, other[0].norms)
    gradient = 0.0
    for step in range(len(reference[0].gradients)):
        expected = assemble([record.gradients[step] for record in reference])
        measured = assemble([record.gradients[step] for record in other])
        total = float(np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in expected.values())))
        for name, value in _tensor_errors(expected, measured, floor=1e-6 * total).items():
            gradient = max(gradient, value)
            worst = max(worst, (value, f"gradient of {name} at step {step + 1}"))
    weight = 0.0
    errors = _tensor_errors(assemble([r.weights for r in reference]), assemble([r.weights for r in other]), floor=0.0)
    for name, value in errors.items():
        weight = max(weight, value)
        worst = max(worst, (value, f"weight {name}"))
    return Difference(loss=loss, norm=norm, gradient=gradient, weight=weight, worst=worst[1])


def _largest_relative(expected: list[float], measured: list[float]) -> float:
    return max(abs(a - b) / abs(a) for a, b in zip(expected, measured, strict=True))


def _tensor_errors(expected: dict[str, np.ndarray], measured: dict[str, np.ndarray], floor: float) -> dict[str, float]:
    assert expected.keys() == measured.keys(), f"tensors differ: {sorted(expected.keys() ^ measured.keys())}"
    errors = {}
    for name, reference in expected.items():
        scale = max(float(np.linalg.norm(reference)), floor)
        error = float(np.linalg.norm(measured[name] - reference)) / scale
        errors[name] = float("inf") if np.isnan(error) else error
    return errors
