"""A run that lost its last steps ends as one that never did. By the launch script: tests/train/test_signals.py."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launch.jobs.resume import plan_resume
from parallel.config import ParallelConfig
from tests.harness.run_faults import well
from tests.harness.runs import STEPS, compare_runs, make_data, read_recipe, write_recipe
from tests.prove.context import Worlds
from train.checkpoint.commits import attempts


def test_a_run_that_lost_its_last_steps_goes_on_bit_for_bit(tmp_path: Path, worlds: Worlds) -> None:
    data = make_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe", data, "stage2", ParallelConfig(), processes=2)
    straight, lost = tmp_path / "straight", tmp_path / "lost"
    whole = read_recipe(recipe)
    saved = replace(whole.checkpoint, every_steps=3)
    well(worlds.nursery.live(replace(whole, run_dir=str(straight), checkpoint=saved), 2))
    assert [attempt.step for attempt in attempts(straight)] == [STEPS, 3]

    shutil.copytree(straight, lost)
    shutil.rmtree(attempts(lost)[0].path)
    well(worlds.nursery.live(plan_resume(lost, processes=2).run, 2))
    difference = compare_runs(straight, lost)
    assert difference.tensors > 200 and difference.steps == STEPS
    assert difference.weights == difference.state == difference.rows == difference.curves == 0, difference

    lines = [json.loads(line) for line in (lost / "metrics.jsonl").read_text().splitlines()]
    assert len({line["rows"] for line in lines}) == STEPS  # no step trains on another's samples
    rates = [line["rates"]["language"] for line in lines]
    saves = [json.loads(line) for line in (straight / "saves.jsonl").read_text().splitlines()]
    assert [(line["step"], line["fault"]) for line in saves] == [(3, None), (STEPS, None)]
    assert all(line["save_bytes"] > 1e6 and line["save_stall_seconds"] > 0 < line["save_seconds"] for line in saves)
    assert rates.index(max(rates)) < 2 and rates[-1] == pytest.approx(1e-4)  # down to a tenth of the peak
