"""Steps whose loss or gradient is no number on one rank alone: what becomes of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.loading.rows import RowReader
from data.plan.plan import Cursor, RowPlan
from data.types import PackedRow
from parallel.config import ParallelConfig
from parallel.watch import Watch
from parallel.world import model_parallel, pick_device
from parallel.zero import ZeroOptimizer
from tests.harness.compare import Record, assemble
from tests.harness.layouts import MODEL, record_steps, start
from tests.harness.rows import random_step
from tests.harness.runs import STEPS as STEPS_OF_A_RUN
from tests.harness.runs import write_recipe
from tests.prove.context import LAYOUTS
from tests.prove.planting import replace_name
from train.ready import open_data
from train.resolve import from_yaml
from train.step import NonFiniteStep
from train.trainer import Trainer

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


Run = Callable[..., list[Any]]
"""Runs a task on every rank of a world of some size, as `Worlds.run` does."""


def differing_tensors(run: Run, what: str, layout: str, precision: str) -> tuple[int, int]:
    """(differing, all) weights after a step was left out between two others, against those two alone, bit by bit."""
    size, parallel = LAYOUTS[layout]
    go = partial(run, size, train, parallel=parallel, precision=precision, limit=len(STEPS))
    reference = go(steps=[STEPS[0], STEPS[2]])
    if what == "loss":
        answers = go(steps=[STEPS[0], spoiled(STEPS[1]), STEPS[2]])
    else:  # on the last rank that has a merger: where two hold it alike, the one whose copy no norm counts
        answers = go(steps=STEPS, gradient_of_rank=0 if parallel.pipeline > 1 else 1, at_step=2)
        # Of the step itself: weights that took the gradient in spoil the losses after it.
        assert all(np.isfinite(record.losses[1]) for record, _ in answers), "the loss alone gave it away"
    assert all(fault is None for _, fault in reference + answers), "a rank stopped"
    expected = assemble([record.weights for record, _ in reference])
    found = assemble([record.weights for record, _ in answers], expected)
    return sum(found[name].tobytes() != expected[name].tobytes() for name in expected), len(expected)


def wrong_ends(run: Run, layout: str) -> int:
    """Ranks that did not end as a limit of one such step in a row says, over two runs."""
    size, parallel = LAYOUTS[layout]
    bad = spoiled(STEPS[0])
    go = partial(run, size, train, parallel=parallel, precision="fp32", limit=1)
    # A finite step between them starts the count again.
    on = [fault for _, fault in go(steps=[bad, STEPS[1], bad, STEPS[2]])]
    stopped = [fault for _, fault in go(steps=[bad, bad, STEPS[2]])]
    due = "step 2: loss is nan over {} supervised tokens, after 1 such steps in a row"
    targets = sum(int((row.targets >= 0).sum()) for row in bad)
    wrong = [fault is None or not fault.startswith(due.format(targets)) for fault in stopped]
    return sum(fault is not None for fault in on) + sum(wrong)


def wrongly_recorded(folder: Path, data: Path) -> tuple[int, int]:
    """(wrong, all) rows of a run's `skipped.jsonl`, and of the rows of the steps around it; the first two of five steps
    are spoiled in the reader."""
    recipe = write_recipe(folder, data, "stage2", ParallelConfig(), 1)
    run = from_yaml((folder / f"{recipe.name}.yaml").read_text())
    run = replace(run, run_dir=str(folder / "run"), optimizer=replace(run.optimizer, skip_non_finite=2))
    plan = open_data(run)[2]
    steps, cursor = [], Cursor()
    for _ in range(STEPS_OF_A_RUN):
        steps.append(plan.step(cursor))
        cursor = steps[-1].next_cursor
    bad = {row.samples for step in steps[:2] for row in step.rows}

    def make(read: Any) -> Any:
        def planted(self: Any, row: RowPlan, *rest: Any) -> Any:
            packed, records = read(self, row, *rest)
            return (replace(packed, patches=packed.patches * np.nan) if row.samples in bad else packed), records

        return planted

    mend = replace_name(RowReader, "read", make)
    try:
        with model_parallel(run.parallel, pick_device(), seed=0) as groups:
            Trainer(run, groups, Watch(run.parallel, run.run_dir, ())).fit()  # not entered: it watches nothing
    finally:
        mend()
    told = [json.loads(line) for line in (folder / "run" / "skipped.jsonl").read_text().splitlines()]
    due = [[[f"mixed:{index}" for _, index in row.samples] for row in step.rows] for step in steps[:2]]
    wrong = [line.get("step") != number + 1 or line["rows"] != due[number] for number, line in enumerate(told[:2])]
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    other = [line["rows"] != step.digest() for line, step in zip(metrics, steps, strict=True)]
    return abs(len(told) - 2) + sum(wrong) + sum(other), 2 + len(steps)
