"""Chunks and recomputation: the same numbers, and really another way of getting them."""

from collections.abc import Callable
from typing import Any

import pytest

from parallel.config import ParallelConfig, RecomputeConfig
from parallel.world import model_parallel, pick_device
from tests.harness.compare import Record, compare
from tests.harness.layouts import STAGES, start, train_on_layout
from tests.prove.context import Worlds
from train.state import TrainState
from train.step import train_step

CELLS = {
    "interleaved": (2, ParallelConfig(pipeline=2, chunks=2)),
    "interleaved, TP2+SP, vision selective, language full": (
        4,
        ParallelConfig(
            tensor=2,
            pipeline=2,
            chunks=2,
            sequence_parallel=True,
            recompute=RecomputeConfig(vision="selective", language="full"),
        ),
    ),
    "vision full, language selective": (
        2,
        ParallelConfig(tensor=2, recompute=RecomputeConfig(vision="full", language="selective")),
    ),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cell", CELLS)
def test_against_one_process(cell: str, stage: str, worlds: Worlds, one_process: Callable[[str], list[Record]]) -> None:
    size, parallel = CELLS[cell]
    records = worlds.run(size, train_on_layout, parallel=parallel, stage=stage)
    difference = compare(one_process(stage), records)
    assert len(records[0].losses) == 5 and difference.largest < 1e-5, difference


def layer_calls(parallel: ParallelConfig) -> dict[str, int]:
    """Forward calls in one step of stage 2 with 4 rows, 3 of them with pictures: layers and attention cores by part."""
    calls = {"vision layer": 0, "vision core": 0, "language layer": 0, "language core": 0}
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups)

        def count(key: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                calls[key] += 1

            return hook

        for chunk in made.built.module.chunks:
            towers = {"language": chunk.language.decoder} | ({"vision": chunk.vision.blocks} if chunk.vision else {})
            for part, block in towers.items():
                for layer in block.layers:
                    layer.register_forward_hook(count(f"{part} layer"))
                    layer.self_attention.core_attention.register_forward_hook(count(f"{part} core"))
        train_step(made.parts, TrainState())
        made.optimizer.close()
    return calls


def test_recomputation_runs_again_what_it_says(worlds: Worlds) -> None:
    (plain,) = worlds.run(1, layer_calls, parallel=ParallelConfig())
    assert plain == {"vision layer": 6, "vision core": 6, "language layer": 16, "language core": 16}
    recompute = RecomputeConfig(vision="full", language="selective")
    (again,) = worlds.run(1, layer_calls, parallel=ParallelConfig(recompute=recompute))
    assert again == {"vision layer": 12, "vision core": 12, "language layer": 16, "language core": 32}


def held_layers(parallel: ParallelConfig) -> list[str]:
    """Canonical names of the first norms of the language layers that this rank holds."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups)
        names = [box.name for box in made.built.boxes.values()]
        made.optimizer.close()
    return [name for name in names if name.startswith("language.") and name.endswith("input_layernorm.weight")]


def test_chunks_take_turns(worlds: Worlds) -> None:
    held = worlds.run(2, held_layers, parallel=ParallelConfig(pipeline=2, chunks=2))
    assert [[int(name.split(".")[3]) for name in names] for names in held] == [[0, 2], [1, 3]]
