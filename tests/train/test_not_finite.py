"""A loss or gradient that is no number, on one rank alone: every rank sees it before the update, and none updates."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from data.types import PackedRow
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from parallel.zero import ZeroOptimizer
from tests.harness.compare import Record, assemble
from tests.harness.layouts import MODEL, record_steps, start
from tests.harness.rows import random_step
from tests.prove.context import LAYOUTS, Worlds
from train.step import NonFiniteStep

STEPS = [random_step(seed, 4, MODEL.language.vocab_size) for seed in (1, 2, 3)]
MERGER = "merger.fc1.weight"
"""Held alike by all tensor ranks: only tensor rank 0's copy counts in the norm."""


def spoiled(step: list[PackedRow]) -> list[PackedRow]:
    """The same rows with a picture that is no number on the replica that reads the first."""
    return [replace(row, patches=row.patches * (np.nan if number == 0 else 1.0)) for number, row in enumerate(step)]


def spoil_gradient(optimizer: ZeroOptimizer, boxes: dict[str, Any], at_step: int) -> None:
    """Put infinity into this rank's own gradient of the merger, after the backward pass of one step."""
    reduce, calls = optimizer.reduce_gradients, [0]

    def planted() -> None:
        calls[0] += 1
        if calls[0] == at_step:
            for parameter, name in optimizer._names.items():
                if boxes[name].name == MERGER:
                    optimizer.gradient(parameter).view(-1)[0] = torch.inf
        reduce()

    optimizer.reduce_gradients = planted  # type: ignore[method-assign]


def train(
    parallel: ParallelConfig,
    precision: str,
    steps: list[list[PackedRow]],
    limit: int,
    gradient_of_rank: int | None = None,
    at_step: int = 0,
) -> tuple[Record, str | None]:
    """What a rank saw, and with which words it stopped."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups, precision=precision, steps=steps)
        made.parts = replace(made.parts, skip_non_finite=limit)
        if groups.rank == gradient_of_rank:
            spoil_gradient(made.optimizer, made.built.boxes, at_step)
        try:
            return record_steps(made), None
        except NonFiniteStep as fault:
            made.optimizer.close()
            return Record(
                losses=[],
                norms=[],
                gradients=[],
                weights=[],
                frozen_with_gradient=[],
                state_elements=0,
                trainable_elements=0,
            ), str(fault)


def weights(answers: list[tuple[Record, str | None]]) -> dict[str, np.ndarray]:
    assert all(fault is None for _, fault in answers), answers
    return assemble([record.weights for record, _ in answers])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["DP2", "TP2", "PP2"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_left_out_is_as_if_it_had_not_been(what: str, layout: str, precision: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    run = partial(worlds.run, size, train, parallel=parallel, precision=precision, limit=1)
    without = weights(run(steps=[STEPS[0], STEPS[2]]))
    if what == "loss":
        around = run(steps=[STEPS[0], spoiled(STEPS[1]), STEPS[2]])
    else:  # on the last rank that has a merger: where two hold it alike, the one whose copy no norm counts
        rank = 0 if layout == "PP2" else 1
        around = run(steps=STEPS, gradient_of_rank=rank, at_step=2)
        assert all(record.norms[1] == float("inf") and np.isfinite(record.losses[1]) for record, _ in around)
    found = weights(around)
    assert all(found[name].tobytes() == without[name].tobytes() for name in without)


@pytest.mark.parametrize("layout", ["DP2", "PP2"])
def test_more_in_a_row_than_allowed_stop_every_rank(layout: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    bad = spoiled(STEPS[0])
    run = partial(worlds.run, size, train, parallel=parallel, precision="fp32", limit=1)
    # A finite step between them starts the count again.
    assert all(fault is None for _, fault in run(steps=[bad, STEPS[1], bad, STEPS[2]]))
    said = {fault for _, fault in run(steps=[bad, bad, STEPS[2]])}
    assert len(said) == 1
    (fault,) = said
    assert fault is not None and fault.startswith("step 2: loss is nan over")
    assert "after 1 such steps in a row" in fault and "optimizer.skip_non_finite=1" in fault
