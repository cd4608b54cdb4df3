"""Held-out losses: right on every layout, of the samples that were asked for, and training does not notice them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.config import SourceConfig
from data.plan.plan import Cursor, RowPlan, StepPlan
from parallel.config import ParallelConfig
from parallel.place import Place
from tests.harness.evaluated import (
    drawing,
    evaluated_run,
    evaluations,
    expected_targets,
    held_out_losses,
    train_here,
    write_held_out,
)
from tests.harness.runs import compare_runs, make_data
from tests.prove.context import LAYOUTS, Worlds
from train.config import EvaluateConfig
from train.crosscheck import cross_faults
from train.faults import sample_names

CHUNKED = ParallelConfig(pipeline=2, chunks=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def held(data: Path) -> tuple[SourceConfig, ...]:
    return write_held_out(data, data)


def test_every_layout_measures_the_same(
    tmp_path: Path, data: Path, held: tuple[SourceConfig, ...], worlds: Worlds
) -> None:
    run = evaluated_run(tmp_path, data, held, ParallelConfig())
    (alone,) = worlds.run(1, held_out_losses, run=run)
    assert alone.targets == expected_targets(run) and alone.bad == 0
    for size, parallel in (*(LAYOUTS[name] for name in ("DP2", "TP2+SP", "PP2")), (2, CHUNKED)):
        for found in worlds.run(size, held_out_losses, run=replace(run, parallel=parallel)):
            assert found.losses == pytest.approx(alone.losses, rel=1e-5) and found.targets == alone.targets


def test_a_run_does_not_notice_that_it_is_evaluated(
    tmp_path: Path, data: Path, held: tuple[SourceConfig, ...], worlds: Worlds
) -> None:
    looked = evaluated_run(tmp_path / "looked", data, held, ParallelConfig(), steps=3)
    alone = replace(looked, run_dir=str(tmp_path / "alone"), evaluate=EvaluateConfig())
    drawn = worlds.run(2, train_here, run=looked, before=drawing)
    assert drawn == worlds.run(2, train_here, run=alone)
    found = compare_runs(tmp_path / "looked", tmp_path / "alone")
    assert (found.weights, found.state, found.rows, found.curves) == (0, 0, 0, 0) and found.steps == 3
    told = evaluations(tmp_path / "looked")
    assert [line["step"] for line in told] == [2, 3]
    assert all(set(line["losses"]) == {"pictures", "words"} for line in told)
    assert told[0]["losses"]["words"] != told[1]["losses"]["words"]
    assert not (tmp_path / "alone" / "evaluations.jsonl").read_text()
    # What an evaluation takes is not counted as training's time.
    seconds = [json.loads(line)["step_seconds"] for line in (tmp_path / "looked" / "metrics.jsonl").open()]
    assert all(each > 0 for each in seconds)


def test_an_evaluation_is_left_off_for_a_request_to_end(
    tmp_path: Path, data: Path, held: tuple[SourceConfig, ...], worlds: Worlds
) -> None:
    run = evaluated_run(tmp_path, data, held, ParallelConfig())
    assert worlds.run(1, asked_at_once, run=run) == [None]


def asked_at_once(run):  # type: ignore[no-untyped-def]
    from unittest.mock import patch

    from train.evaluate import Evaluation

    losses = Evaluation.losses
    with patch.object(Evaluation, "losses", lambda self: losses(self, lambda: True)):
        return held_out_losses(run)


def test_a_report_names_the_samples_of_the_evaluation() -> None:
    def plan(name: str) -> Any:
        config = SimpleNamespace(sources=[SimpleNamespace(name=name)])
        rows = (RowPlan(samples=((0, 7), (0, 3)), num_tokens=9, num_patches=0, cost=1),)
        return SimpleNamespace(config=config, step=lambda _: StepPlan(rows=rows, next_cursor=Cursor()))

    names = sample_names(plan("learnt"), 1, plan("held"))
    assert names(Place(phase="evaluate", step=4), 0) == [["held:7", "held:3"]]
    assert names(Place(phase="forward", step=4), 0) == [["learnt:7", "learnt:3"]]
    assert Place(phase="evaluate", step=4).steps_done == 4


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sources": ()}, "name a held-out source"),
        ({"every_steps": 0}, "evaluate.every_steps=0 must be at least 1 or null"),
        ({"every_steps": None, "answers": 2}, "need evaluate.every_steps"),
        ({"every_steps": 3, "command": ("true",)}, "set checkpoint.every_steps=3"),
        ({"command_seconds": 0.0}, "must be more than 0"),
        ({"answers": -1}, "must be 0 or more"),
    ],
)
def test_what_cannot_go_together_is_refused(tmp_path: Path, changed: dict, words: str) -> None:
    source = SourceConfig(name="held", path="held")
    run = evaluated_run(tmp_path, tmp_path, (source,), ParallelConfig())
    run = replace(run, checkpoint=replace(run.checkpoint, every_steps=2))
    assert cross_faults(run) == []
    (fault,) = cross_faults(replace(run, evaluate=replace(run.evaluate, **changed)))
    assert words in fault
