"""Most bytes that a rank really holds in a step, counted from the storages that are alive, beside what a plan says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from launch.planning.memory import RankMemory, rank_memory
from launch.planning.piece import cut
from model.activations import RowSizes, kernels_of
from model.config import ModelConfig
from model.placement import language_split
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.held_bytes import BUCKET, WIDE
from tests.harness.layouts import OPTIMIZER, STAGES, filled_model, stage_config, start
from tests.harness.rows import sized_row
from tests.harness.storages import Storages
from train.optimizer import state_bytes
from train.state import TrainState
from train.step import train_step

ROWS = [
    (420, [(1, 16, 24), (1, 12, 16)]),
    (300, [(2, 12, 16)]),
    (512, [(1, 24, 24)]),
    (380, []),
    (450, [(1, 8, 12), (1, 12, 12), (1, 16, 16)]),
    (500, [(3, 12, 12)]),
    (330, [(1, 16, 16)]),
    (480, [(1, 20, 24), (1, 8, 8)]),
]
TEXTS = [(200, [(1, 8, 12)]), (300, []), (512, []), (480, []), (500, []), (450, [])]
"""Nothing goes back to the vision tower from most of them, but from later pipeline stages to the first. The long ones
come when the first has left gradients: before, a rank in fp32 has none, and the plan has them from the start."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One rank in the second step of a run."""

    measured: int
    """Bytes of all storages alive at most, rows of the step included."""
    planned: RankMemory

    @property
    def error(self) -> float:
        """Relative; less than 0 where the plan has too little."""
        return self.planned.most / self.measured - 1


def peak_in_step(
    parallel: ParallelConfig, stage: str, precision: str, model: ModelConfig = WIDE, rows: Sequence[Any] = ROWS
) -> Peak:
    """Two real steps of a training stage on this rank; the most held in the second, when everything has been made."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        planned = _plan(parallel, stage, precision, model, groups, rows)
        generator = np.random.default_rng(0)
        packed = [sized_row(generator, model.language.vocab_size, tokens, grids) for tokens, grids in rows]
        with Storages() as storages:
            made = start(parallel, stage, groups, model=model, steps=[packed, packed], precision=precision)
            fetch = made.parts.batches.next

            def fetch_and_count() -> Any:
                with _disable_current_modes():
                    plan, announced = fetch()
                for row in announced.rows:
                    for name in ("tokens", "supervised", "targets", "positions", "visual_index", "patches"):
                        if getattr(row, name) is not None:
                            storages.add(getattr(row, name))
                return plan, announced

            made.parts.batches.next = fetch_and_count  # type: ignore[method-assign]
            state = TrainState()
            train_step(made.parts, state)
            storages.most = 0
            train_step(made.parts, state)
            made.optimizer.close()
        return Peak(measured=storages.most, planned=planned)


def allocated_in_step(
    parallel: ParallelConfig, stage: str, precision: str, model: ModelConfig, rows: Sequence[Any]
) -> Peak:
    """The same on a GPU by torch's own count, which has in it what the caching allocator rounds up and cuBLAS works in.

    Tokens and pixels of both steps are on the host until they are taken.
    """
    before = torch.cuda.memory_allocated()
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        planned = _plan(parallel, stage, precision, model, groups, rows)
        generator = np.random.default_rng(0)
        packed = [sized_row(generator, model.language.vocab_size, tokens, grids) for tokens, grids in rows]
        made = start(parallel, stage, groups, model=model, steps=[packed, packed], precision=precision)
        state = TrainState()
        train_step(made.parts, state)
        torch.cuda.reset_peak_memory_stats()
        train_step(made.parts, state)
        made.optimizer.close()
    return Peak(measured=torch.cuda.max_memory_allocated() - before, planned=planned)


def _plan(
    parallel: ParallelConfig, stage: str, precision: str, model: ModelConfig, groups: Any, sizes: Sequence[Any]
) -> RankMemory:
    run = SimpleNamespace(
        stage=stage_config(stage),
        optimizer=OPTIMIZER,
        parallel=replace(parallel, reduce_bucket_elements=BUCKET),
        precision=precision,
    )
    built = filled_model(parallel, stage, groups, model=model, precision=precision)
    held = state_bytes(run, built, groups.dp_size, groups.dp_rank)  # type: ignore[arg-type]
    mine = sizes[groups.dp_rank :: groups.dp_size]
    rows = [planned_row(model, tokens, grids) for tokens, grids in mine]
    kernels = kernels_of(parallel, precision, on_gpu=groups.device.type == "cuda")
    pieces = cut(model, parallel, kernels, STAGES[stage], language_split(model, parallel))
    return rank_memory(pieces, held, groups.pp_rank, rows)


def planned_row(model: ModelConfig, tokens: int, grids: Any) -> RowSizes:
    """As `sized_row` makes it."""
    generator = np.random.default_rng(0)
    row = sized_row(generator, model.language.vocab_size, tokens, grids)
    return RowSizes(
        segments=tuple(int(n) for n in row.segment_lengths),
        frames=tuple(rows_ * columns for times, rows_, columns in grids for _ in range(times)),
        targets=max(1, int((row.targets >= 0).sum())),
    )
