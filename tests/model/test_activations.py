"""What autograd saves of a row, against the formula of model/activations.py."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.activations import RowSizes, kernels_of, row_bytes
from model.placement import language_split
from parallel.config import ParallelConfig, RecomputeConfig
from parallel.world import model_parallel, pick_device
from tests.harness.held_bytes import WIDE
from tests.harness.layouts import STAGES, start
from tests.harness.rows import sized_row
from tests.harness.world import gloo_groups
from tests.prove.context import Worlds

ROWS = {
    "one sample": (120, [(1, 12, 16)]),
    "two pictures": (200, [(1, 12, 16), (1, 8, 8)]),
    "a clip": (150, [(3, 8, 8)]),
    "text": (90, []),
}


def saved(stage: str, parallel: ParallelConfig, precision: str) -> list[tuple[str, int, int]]:
    """(row, bytes of the storages that forward saves beside weights and the row, those of the formula) on this rank."""
    model = replace(WIDE, language=replace(WIDE.language, tie_embeddings=False))
    found = []
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        generator = np.random.default_rng(0)
        rows = [sized_row(generator, model.language.vocab_size, tokens, grids) for tokens, grids in ROWS.values()]
        made = start(parallel, stage, groups, model=model, steps=[rows], std=0.02, precision=precision)
        _, announced = made.parts.batches.next()
        (chunk,) = made.built.module.chunks
        weights = list(chunk.parameters())
        for name, row in zip(ROWS, announced.rows, strict=True):
            given = [*weights, row.tokens, row.supervised, row.targets, row.positions, row.visual_index, row.patches]
            known = {tensor.untyped_storage().data_ptr() for tensor in given if tensor is not None}
            storages: dict[int, torch.UntypedStorage] = {}

            # Keeps and returns no tensor: nodes hold this function and what it returns, so they would hold themselves,
            # and the model and its groups, for ever.
            def keep(
                tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage] = storages, known: set[int] = known
            ) -> None:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in known:
                    storages[storage.data_ptr()] = storage  # held, so that no address is used twice

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                chunk(row)
            sizes = RowSizes(
                segments=tuple(row.segments.lengths),
                frames=tuple(rows_ * columns for times, rows_, columns in row.grids for _ in range(times)),
                targets=row.supervised.numel(),
            )
            due = row_bytes(
                model,
                sizes,
                parallel,
                kernels_of(parallel, precision, on_gpu=groups.device.type == "cuda"),
                STAGES[stage],
                layers=language_split(model, parallel)[groups.pp_rank],
                is_first=groups.is_first_pipeline_stage,
                is_last=groups.is_last_pipeline_stage,
            )
            found.append((name, sum(storage.nbytes() for storage in storages.values()), due))
        made.optimizer.close()
    return found


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_bytes_are_those_of_the_formula(stage: str, precision: str, recompute: Any, worlds: Worlds) -> None:
    parallel = ParallelConfig(recompute=RecomputeConfig(vision=recompute, language=recompute))
    (found,) = worlds.run(1, saved, stage=stage, parallel=parallel, precision=precision)
    for name, measured, due in found:
        assert measured == pytest.approx(due, rel=0.002, abs=200), (name, measured, due)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_tensor_ranks_save_their_share(sequence_parallel: bool, recompute: Any, worlds: Worlds) -> None:
    parallel = ParallelConfig(
        tensor=2,
        sequence_parallel=sequence_parallel,
        recompute=RecomputeConfig(vision=recompute, language=recompute),
    )
    for found in worlds.run(2, saved, stage="stage2", parallel=parallel, precision="bf16"):
        for name, measured, due in found:
            assert measured == pytest.approx(due, rel=0.002, abs=200), (name, measured, due)


def test_the_measure_lets_go_of_its_groups(worlds: Worlds) -> None:
    parallel = ParallelConfig(recompute=RecomputeConfig(vision="full", language="full"))
    for _ in range(2):
        worlds.run(1, saved, stage="stage2", parallel=parallel, precision="fp32")
    assert 1 <= worlds.run(1, gloo_groups)[0] < 8  # the world's own group is one
