"""Steps that are out of the ordinary, through the real step on real layouts."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.types import PackedRow
from parallel.config import ParallelConfig
from tests.harness.awkward import AWKWARD, train_awkward, train_awkward_plainly
from tests.harness.awkward import LAYOUTS as AWKWARD_LAYOUTS
from tests.harness.compare import assemble, compare
from tests.harness.layouts import MODEL, STAGES, train_on_layout
from tests.harness.refused import REFUSED
from tests.harness.rows import random_step
from tests.harness.runs import write_recipe
from tests.harness.skipped import (
    KINDS,
    empty_rows,
    look_at_run,
    skip_a_step,
    text_recipe,
    train_on_text,
    write_text,
)
from tests.prove.context import LAYOUTS, Worlds
from train.resolve import RecipeError, compose
from train.step import NonFiniteStep

VOCABULARY = MODEL.language.vocab_size


def weights(records: list[Any]) -> dict[str, np.ndarray]:
    return assemble([record.weights for record in records])


@pytest.mark.parametrize("layout", ["one process", "DP2", "PP2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_nothing_to_learn_is_as_if_it_had_not_been(kind: str, layout: str, worlds: Worlds) -> None:
    stage, empty = KINDS[kind], empty_rows(kind)
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


SAMPLE = (
    ("a microbatch without pictures", "PP2", "stage1"),
    ("a replica without pictures in the whole step", "DP2", "stage1"),
    ("a replica without pictures in the whole step", "DP2xTP2+SP", "stage2"),
    ("a replica without pictures in the whole step", "DP2xPP2", "stage3"),
    ("no picture in a whole step", "one process", "stage2"),
    ("no picture in a whole step", "DP2xTP2", "stage2"),
    ("no picture in a whole step", "PP2 interleaved", "stage3"),
    ("pictures and clips in one row", "TP2+SP", "stage2"),
    ("fewer microbatches than pipeline stages", "PP4", "stage1"),
    ("one microbatch", "PP2", "stage1"),
    ("one microbatch a replica", "DP2", "stage2"),
    ("lengths of 5, 37, 700 and 3000 tokens", "DP2xPP2", "stage2"),
    ("odd lengths under sequence parallelism", "TP4+SP", "stage2"),
    ("a row whose tokens are all masked", "DP2", "stage1"),
    ("a row whose tokens are all masked", "PP2", "stage2"),
    ("301 words on 2 and 4 tensor ranks", "TP2", "stage2"),
    ("9 words on 4 tensor ranks", "TP4+SP", "stage2"),
)


@pytest.mark.parametrize(("batch", "layout", "stage"), SAMPLE)
def test_an_awkward_batch_against_plain_autograd_and_adamw(batch: str, layout: str, stage: str, worlds: Worlds) -> None:
    size, parallel = AWKWARD_LAYOUTS[layout]
    plain = worlds.run(1, train_awkward_plainly, batch=batch, stage=stage)
    records = worlds.run(size, train_awkward, batch=batch, parallel=parallel, stage=stage)
    difference = compare(plain, records)
    assert difference.largest < 1e-5, difference


def test_every_awkward_batch_for_at_most_four_processes_is_tried() -> None:
    small = {batch for batch, made in AWKWARD.items() if any(AWKWARD_LAYOUTS[name][0] <= 4 for name in made.layouts)}
    assert {batch for batch, _, _ in SAMPLE} == small
    assert all(layout in AWKWARD[batch].layouts and stage in AWKWARD[batch].stages for batch, layout, stage in SAMPLE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_nothing_to_learn_changes_no_bit_of_weights_and_state(kind: str, worlds: Worlds) -> None:
    size, parallel = AWKWARD_LAYOUTS["PP2 interleaved"]
    for seen in worlds.run(size, skip_a_step, parallel=parallel, kind=kind):
        assert seen.changed == 0 and seen.looked_at > 20 and seen.wrong == []


def test_a_run_in_which_every_step_is_skipped_goes_on_through_its_data(worlds: Worlds, tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path, write_text(tmp_path))
    size, parallel = LAYOUTS["PP2"]
    worlds.run(size, train_on_text, parallel=parallel, folder=tmp_path, recipe=recipe)
    seen = look_at_run(tmp_path)
    assert seen.tensors > 50 and (seen.changed, seen.still, seen.unrecorded) == (0, 0, 0)


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_layout_cannot_train_is_refused_with_the_numbers(what: str, tmp_path: Path) -> None:
    processes, overrides, words = REFUSED[what]
    recipe = write_recipe(tmp_path, tmp_path, "stage2", ParallelConfig(), processes)
    with pytest.raises(RecipeError) as refused:
        compose(recipe.name, list(overrides), folder=tmp_path, world_size=processes)
    assert all(word in str(refused.value) for word in words), refused.value


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
