"""Steps that are out of the ordinary, through the real step on real layouts."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data.config import IGNORE
from data.types import PackedRow
from parallel.config import ParallelConfig
from tests.harness.compare import assemble, compare
from tests.harness.layouts import MODEL, STAGES, train_on_layout
from tests.harness.rows import GRIDS, pack, random_sample, random_step
from tests.prove.context import LAYOUTS, Worlds
from train.step import NonFiniteStep

VOCABULARY = MODEL.language.vocab_size


def rows(seed: int, *grids: list[Any]) -> list[PackedRow]:
    """One row of one sample for each list of grids."""
    generator = np.random.default_rng(seed)
    return [pack([random_sample(generator, VOCABULARY, row)]) for row in grids]


def unsupervised(step: list[PackedRow]) -> list[PackedRow]:
    return [replace(row, targets=np.full_like(row.targets, IGNORE)) for row in step]


def weights(records: list[Any]) -> dict[str, np.ndarray]:
    return assemble([record.weights for record in records])


@pytest.mark.parametrize("layout", ["one process", "DP2", "PP2"])
@pytest.mark.parametrize(
    ("stage", "empty"),
    [
        ("stage2", unsupervised(random_step(5, 4, VOCABULARY))),  # nothing is supervised
        ("stage1", rows(6, [], [], [], [])),  # text alone, which a frozen language model cannot learn from
    ],
    ids=["without-targets", "without-pictures"],
)
def test_a_step_with_nothing_to_learn_is_as_if_it_had_not_been(
    layout: str, stage: str, empty: list[PackedRow], worlds: Worlds
) -> None:
    size, parallel = LAYOUTS[layout]
    full = [random_step(1, 4, VOCABULARY), random_step(2, 4, VOCABULARY)]
    without = worlds.run(size, train_on_layout, parallel=parallel, stage=stage, steps=full)
    around = worlds.run(size, train_on_layout, parallel=parallel, stage=stage, steps=[full[0], empty, full[1]])
    for record in around:
        assert math.isnan(record.losses[1]) and record.norms[1] == 0.0
        assert len(record.gradients) == 2  # the optimizer was never asked, so moments and decay stood still
    expected, found = weights(without), weights(around)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def refusal(parallel: ParallelConfig, steps: list[list[PackedRow]]) -> str:
    """What this rank says of a step that is no number; run in a world."""
    try:
        train_on_layout(parallel, "stage2", steps=steps)
    except NonFiniteStep as fault:
        return str(fault)
    return "updated"


@pytest.mark.parametrize("layout", ["DP2", "PP2"])
def test_a_loss_that_is_no_number_stops_every_rank_before_the_update(layout: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    step = random_step(1, 4, VOCABULARY)
    step[0].patches[:] = np.nan  # on one replica alone
    said = worlds.run(size, refusal, parallel=parallel, steps=[step])
    assert set(said) == {said[0]} and said[0].startswith("step 1: loss is nan")


@pytest.mark.parametrize(
    ("layout", "stage", "steps"),
    [
        # Rows go to replicas in turn: replica 1 has no picture in the first step, replica 0 in the second.
        ("DP2", "stage1", [rows(1, [GRIDS[0]], []), rows(2, [], [GRIDS[2]])]),
        ("DP2", "stage2", [rows(3, [GRIDS[0]], []), rows(4, [], [])]),
        ("DP2", "stage3", [rows(5, [], [GRIDS[4]]), unsupervised(rows(6, [GRIDS[0]])) + rows(7, [GRIDS[1]])]),
        # Fewer microbatches than pipeline stages.
        ("PP2", "stage1", [rows(8, [GRIDS[0], GRIDS[3]]), rows(9, [GRIDS[1]])]),
        ("PP2", "stage2", [rows(10, [GRIDS[0]]), rows(11, [])]),
        # A row shorter than the tensor axis is wide is mostly padding.
        ("TP2+SP", "stage2", [rows(12, [GRIDS[1]], [])]),
    ],
    ids=["dp2-stage1", "dp2-stage2", "dp2-stage3", "pp2-one-row-stage1", "pp2-one-row-stage2", "sp-short-rows"],
)
def test_lopsided_steps_agree_with_one_process(
    layout: str, stage: str, steps: list[list[PackedRow]], worlds: Worlds
) -> None:
    size, parallel = LAYOUTS[layout]
    reference = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage=stage, steps=steps)
    records = worlds.run(size, train_on_layout, parallel=parallel, stage=stage, steps=steps)
    difference = compare(reference, records)
    assert difference.largest < 1e-5, difference


@pytest.mark.parametrize("layout", ["DP2", "TP2+SP", "PP2"])
def test_bf16_stays_close_to_one_process(layout: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    steps = [random_step(1, 2, VOCABULARY), random_step(2, 2, VOCABULARY)]  # bf16 matrices are slow on a CPU
    exact = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage="stage2", steps=steps)
    records = worlds.run(size, train_on_layout, parallel=parallel, stage="stage2", steps=steps, precision="bf16")
    difference = compare(exact, records)
    # bf16 has 8 bits: a few parts in a thousand each operation. Gradients of key biases are rounding alone.
    assert difference.loss < 5e-3 and difference.norm < 3e-2 and difference.weight < 1e-2, difference
    assert all(math.isfinite(value) for record in records for value in (*record.losses, *record.norms))


def test_bf16_gradients_are_averaged_in_fp32(worlds: Worlds) -> None:
    """Each row is the same bf16 arithmetic wherever it runs, so only the order of fp32 sums may differ.

    Two rows a replica: of one alone the sum is a bf16 number still, and rounding it shows nothing.
    """
    steps = [random_step(100, 4, VOCABULARY)]
    alone = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage="stage2", steps=steps, precision="bf16")
    shared = worlds.run(2, train_on_layout, parallel=ParallelConfig(), stage="stage2", steps=steps, precision="bf16")
    difference = compare(alone, shared)
    assert difference.gradient < 1e-5 and difference.norm < 1e-5, difference


def train_the_merger_alone(parallel: ParallelConfig, precision: str) -> Any:
    """On every rank: one step in which a tensor rank has nothing of its own to learn."""
    STAGES["merger alone"] = ("merger",)
    return train_on_layout(parallel, "merger alone", steps=[random_step(4, 2, VOCABULARY)], precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replicated_parameters_alone_can_be_trained_over_the_tensor_axis(precision: str, worlds: Worlds) -> None:
    alone = worlds.run(1, train_the_merger_alone, parallel=ParallelConfig(), precision=precision)
    size, parallel = LAYOUTS["TP2"]
    difference = compare(alone, worlds.run(size, train_the_merger_alone, parallel=parallel, precision=precision))
    assert difference.norm < (1e-5 if precision == "fp32" else 3e-2), difference
