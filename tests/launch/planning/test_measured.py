"""A plan against what really happens: bytes held and sent, order of passes, weights of built ranks."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.planning.weights import Weights
from model.build import build_model
from model.placement import language_split
from parallel.config import ParallelConfig, RecomputeConfig
from parallel.world import imagined_rank
from tests.harness.layouts import MODEL, OPTIMIZER, stage_config
from tests.harness.pass_order import pass_order
from tests.harness.planned_memory import ROWS, TEXTS, peak_in_step
from tests.harness.planned_messages import pass_messages
from tests.prove.context import Worlds
from train.optimizer import state_bytes

FULL = RecomputeConfig(vision="full", language="full")


@pytest.mark.parametrize(
    ("size", "parallel", "stage", "precision", "rows"),
    [
        (1, ParallelConfig(recompute=FULL), "stage2", "bf16", ROWS[:4]),
        (2, ParallelConfig(tensor=2, sequence_parallel=True), "stage1", "fp32", ROWS[:4]),
        (2, ParallelConfig(pipeline=2), "stage3", "bf16", ROWS[:4]),
        (2, ParallelConfig(pipeline=2), "stage1", "fp32", TEXTS),
    ],
    ids=["recomputed", "tensor ranks", "pipeline stages", "text on pipeline stages"],
)
def test_planned_bytes_are_those_that_a_step_holds(
    size: int, parallel: ParallelConfig, stage: str, precision: str, rows: Any, worlds: Worlds
) -> None:
    for peak in worlds.run(size, peak_in_step, parallel=parallel, stage=stage, precision=precision, rows=rows):
        assert abs(peak.error) < 0.05, peak


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_simulated_order_is_that_of_a_real_step(chunks: int, worlds: Worlds) -> None:
    parallel = ParallelConfig(pipeline=2, chunks=chunks)
    orders = worlds.run(2, pass_order, parallel=parallel, microbatches=4)
    assert all(seen == simulated and len(seen) == 8 * chunks for seen, simulated in orders)


@pytest.mark.parametrize("split", [False, True])
def test_planned_messages_are_those_that_passes_send(split: bool, worlds: Worlds) -> None:
    parallel = ParallelConfig(tensor=2, sequence_parallel=split, recompute=RecomputeConfig(language="full"))
    for passes in worlds.run(2, pass_messages, parallel=parallel, stage="stage2"):
        assert len(passes) == 6 and all(seen == planned and seen.rounds for seen, planned in passes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("decays", [{}, {"vision": 0.9, "language": 0.8}])
@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(tensor=2, pipeline=2, split=(1, 3)),
        ParallelConfig(pipeline=2, chunks=2),
        ParallelConfig(pipeline=4),
    ],
    ids=["one rank", "uneven", "interleaved", "deep"],
)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_weights_of_a_split_are_those_of_built_ranks(
    parallel: ParallelConfig, stage: str, decays: dict[str, float], tied: bool
) -> None:
    model = replace(MODEL, language=replace(MODEL.language, tie_embeddings=tied))
    layer_decays = {part: decay for part, decay in decays.items() if part in stage_config(stage).trainable}
    run: Any = SimpleNamespace(
        model=model,
        stage=stage_config(stage, {"layer_decays": layer_decays}),
        optimizer=OPTIMIZER,
        parallel=parallel,
        precision="bf16",
    )
    built = []
    for rank in range(parallel.pipeline):
        world = parallel.tensor * parallel.pipeline
        with imagined_rank(parallel, world, rank * parallel.tensor) as groups:
            ranks = build_model(model, parallel, groups, torch.bfloat16, run.stage.trainable)
            built.append(state_bytes(run, ranks, dp_size=4))
    held = Weights(run, parallel.tensor).held(language_split(model, parallel), parallel.pipeline, dp_size=4)
    assert held == built
