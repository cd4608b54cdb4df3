"""Layouts train alike: loss, norm, every gradient at each of 5 steps, every weight after them. The proof has all."""

from collections.abc import Callable
from itertools import product

import pytest

from parallel.config import ParallelConfig, RecomputeConfig
from parallel.world import model_parallel, pick_device
from tests.harness.compare import Record, compare
from tests.harness.grid import RECOMPUTE, SIZES, all_cells, layer_calls, num_rows, train_grid
from tests.harness.layouts import STAGES, start
from tests.prove.context import Worlds

CELLS = {(cell.layout, cell.stage): cell for cell in all_cells()}
SAMPLE = (
    ("DP2xTP1xPP1", "stage3"),
    ("DP1xTP2xPP1", "stage2"),
    ("DP1xTP1xPP2 interleaved", "stage1"),
    ("DP4xTP1xPP1", "stage1"),
    ("DP2xTP1xPP2", "stage3"),
    ("DP2xTP2xPP1+SP", "stage2"),
    ("DP1xTP4xPP1+SP", "stage1"),
    ("DP1xTP1xPP4", "stage2"),
    ("DP1xTP1xPP4 interleaved", "stage2"),
    ("DP1xTP2xPP2+SP interleaved", "stage3"),
)
"""Of at most 4 processes: a start costs seconds for each."""

Reference = Callable[[str, int], list[Record]]


@pytest.fixture(scope="module")
def one_process(worlds: Worlds) -> Reference:
    """What one process records of a training stage with so many rows a step, as a list of one rank."""
    known: dict[tuple[str, int], list[Record]] = {}

    def record(stage: str, rows: int) -> list[Record]:
        if (stage, rows) not in known:
            known[stage, rows] = worlds.run(1, train_grid, parallel=ParallelConfig(), stage=stage, num_rows=rows)
        return known[stage, rows]

    return record


@pytest.mark.parametrize(("layout", "stage"), SAMPLE)
def test_layout_against_one_process(layout: str, stage: str, worlds: Worlds, one_process: Reference) -> None:
    cell = CELLS[layout, stage]
    rows = num_rows(cell.parallel)
    records = worlds.run(cell.world_size, train_grid, parallel=cell.parallel, stage=stage, num_rows=rows)
    difference = compare(one_process(stage, rows), records)
    assert len(records[0].losses) == 5 and difference.largest < 1e-5, difference


def test_the_sample_has_every_value_of_every_axis() -> None:
    cells = [CELLS[key] for key in SAMPLE]
    axes = [cell.parallel for cell in cells]
    assert {cell.parallel.data_size(cell.world_size) for cell in cells} == set(SIZES)
    assert {axis.tensor for axis in axes} == {axis.pipeline for axis in axes} == set(SIZES)
    assert {axis.sequence_parallel for axis in axes} == {True, False} and {axis.chunks for axis in axes} == {1, 2}
    assert {axis.recompute.vision for axis in axes} == {axis.recompute.language for axis in axes} == set(RECOMPUTE)
    assert {cell.stage for cell in cells} == set(STAGES)


def test_every_pair_of_recomputations_meets_every_stage_and_every_axis() -> None:
    pairs = set(product(RECOMPUTE, RECOMPUTE))
    kinds = [
        lambda cell: cell.parallel.sequence_parallel,
        lambda cell: cell.parallel.data_size(cell.world_size) > 1,
        lambda cell: cell.parallel.tensor > 1,
        lambda cell: cell.parallel.pipeline > 1,
        lambda cell: cell.parallel.chunks > 1,
        *(lambda cell, stage=stage: cell.stage == stage for stage in STAGES),
    ]
    for number, is_of_kind in enumerate(kinds):
        found = [cell.parallel.recompute for cell in CELLS.values() if is_of_kind(cell)]
        assert {(recompute.vision, recompute.language) for recompute in found} == pairs, number


def test_the_comparison_sees_a_wrong_weight_and_a_missing_piece(one_process: Reference) -> None:
    (right,) = one_process("stage2", 4)
    worse = [piece for piece in right.weights if "fc1.weight" in piece.name]
    moved = [
        type(piece)(name=piece.name, shape=piece.shape, offset=piece.offset, values=piece.values * (1 + 1e-4))
        for piece in worse
    ]
    # The right copy is there too, as on another rank: it must not hide the wrong one.
    wrong = type(right)(**{**vars(right), "weights": [*moved, *right.weights]})
    assert compare([right], [wrong]).weight > 5e-5
    lost = type(right)(**{**vars(right), "weights": right.weights[1:]})
    with pytest.raises(AssertionError, match="tensors differ"):
        compare([right], [lost])


def test_the_comparison_sees_a_loss_that_is_no_number_on_one_rank(one_process: Reference) -> None:
    (right,) = one_process("stage2", 4)
    lost = type(right)(**{**vars(right), "losses": [*right.losses[:-1], float("nan")]})
    assert compare([right], [right, lost]).loss == float("inf")
    assert compare([lost], [lost, lost]).loss == 0.0  # both skipped the step


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
