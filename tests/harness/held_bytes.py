"""Bytes that a rank really holds in a step, counted from the storages that are alive, beside what the formula says."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from torch.utils._python_dispatch import _disable_current_modes

from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.memory import HeldBytes
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import OPTIMIZER, filled_model, stage_config, start
from tests.harness.rows import random_step
from tests.harness.storages import Storages
from train.optimizer import state_bytes
from train.state import TrainState
from train.step import train_step

WIDE = ModelConfig(
    name="wide enough that tables of positions and counters are nothing beside the weights",
    vision=VisionConfig(depth=2, embed_dim=128, num_heads=4),
    language=LanguageConfig(
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=512,
        vocab_size=2001,
        mrope_section=(8, 12, 12),
        tie_embeddings=True,
    ),
)
NUM_ROWS = 8
"""Every replica of four has one with a picture, and so a gradient of the tower when backward ends."""
BUCKET = 100_000
"""Elements of a message of gradients, as `layouts.start` sets it; a third of the largest parameter."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """One rank in the second step of a run."""

    measured: dict[str, int]
    """Moment -> bytes of all storages alive, but for the batch."""
    formula: dict[str, int]
    """The same moments, as `HeldBytes` has them."""
    reduction: int
    """Bytes alive at most while gradients were completed and reduced, beyond those alive before."""
    bucket: int
    """What the formula allows for that."""

    @property
    def error(self) -> float:
        """Largest relative difference of a moment."""
        return max(abs(self.measured[moment] / due - 1) for moment, due in self.formula.items())


def hold_in_step(parallel: ParallelConfig, stage: str, precision: str, model: ModelConfig = WIDE) -> Held:
    """Two real steps of a training stage on this rank; the second, when everything has been made, is counted."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        predicted = _predict(parallel, stage, precision, model, groups)
        steps = [random_step(100 + step, NUM_ROWS, model.language.vocab_size) for step in range(2)]
        with Storages() as storages:
            made = start(parallel, stage, groups, model=model, steps=steps, precision=precision)
            optimizer, batches = made.optimizer, made.parts.batches
            measured: dict[str, int] = {}
            extra = 0
            fetch, reduce, update = batches.next, optimizer.reduce_gradients, optimizer.step

            def fetch_unseen() -> Any:
                with _disable_current_modes():
                    return fetch()

            def count_and_reduce() -> None:
                nonlocal extra
                measured["after_backward"] = storages.most = storages.num_bytes
                reduce()
                extra = storages.most - measured["after_backward"]
                storages.most = None
                measured["after_reduction"] = storages.num_bytes

            def update_and_count(*along: Any) -> Any:
                updated = update(*along)
                measured["always"] = storages.num_bytes
                return updated

            batches.next = fetch_unseen  # type: ignore[method-assign]
            optimizer.reduce_gradients = count_and_reduce  # type: ignore[method-assign]
            optimizer.step = update_and_count  # type: ignore[method-assign]
            state = TrainState()
            for _ in steps:
                train_step(made.parts, state)
            optimizer.close()
    formula = {moment: getattr(predicted, moment) for moment in measured}
    return Held(measured=measured, formula=formula, reduction=extra, bucket=predicted.bucket)


def _predict(parallel: ParallelConfig, stage: str, precision: str, model: ModelConfig, groups: Any) -> HeldBytes:
    run = SimpleNamespace(
        stage=stage_config(stage),
        optimizer=OPTIMIZER,
        parallel=replace(parallel, reduce_bucket_elements=BUCKET),
        precision=precision,
    )
    built = filled_model(parallel, stage, groups, model=model, precision=precision)
    return state_bytes(run, built, groups.dp_size, groups.dp_rank)  # type: ignore[arg-type]
