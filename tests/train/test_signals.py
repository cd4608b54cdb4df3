"""Real runs that are asked to end, by each signal and to each process that may get one: saved, told, nothing left, and
gone on from bit for bit. How ranks agree: tests/parallel/test_stop.py."""

import signal
from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.asked import AGAIN, Request, ask, in_step, steps_recorded
from tests.harness.runs import STEPS, Recipe, compare_runs, launch, make_data, resume, write_recipe
from train.checkpoint.commits import attempts
from train.ending import read_ending

CHAIN = (
    Request(signal=signal.SIGUSR1, to="torchrun"),
    Request(signal=signal.SIGTERM, to="1"),
    Request(signal=signal.SIGINT, to="all"),
)
"""After steps 2, 3 and 4."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def recipe_of(folder: Path, data: Path, parallel: ParallelConfig) -> Recipe:
    return write_recipe(folder / "recipe", data, "stage2", parallel, processes=2)


def is_the_same(one: Path, other: Path) -> bool:
    difference = compare_runs(one, other)
    assert difference.tensors > 200 and difference.steps == STEPS
    return difference.weights == difference.state == difference.rows == difference.curves == 0


@pytest.mark.timeout(900)
def test_a_run_that_is_asked_to_end_again_and_again_ends_as_one_that_never_was(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, data, ParallelConfig())
    straight, run = tmp_path / "straight", tmp_path / "run"
    launch(recipe, straight, timeout=200.0)
    ending = read_ending(straight)
    assert ending is not None and (ending.verdict, ending.step) == ("done", STEPS)

    for number, request in enumerate(CHAIN):
        step = 2 + number
        fault = in_step(1 if number else 2, microbatches=2, rank=1)
        asked = ask(recipe, run, request, fault, resumed=number > 0, timeout=200.0)
        assert asked.code == AGAIN and not asked.left_over, asked.output
        assert asked.ending is not None and (asked.ending.verdict, asked.ending.step) == ("again", step)
        assert request.signal.name in asked.ending.reason
        newest = attempts(run)[0]
        assert newest.sealed and (newest.step, newest.path.name) == (step, asked.ending.commit)
        assert asked.output.count(f"ended as {request.signal.name} to rank") == 1 and "Traceback" not in asked.output, (
            asked.output
        )
        assert steps_recorded(run)[-1] == step
    resume(recipe, run, timeout=200.0)
    assert is_the_same(straight, run)
    ending = read_ending(run)
    assert ending is not None and (ending.verdict, ending.step) == ("done", STEPS)


@pytest.mark.timeout(700)
def test_a_step_that_never_ends_is_dropped_and_the_one_before_is_gone_on_from(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, data, ParallelConfig(pipeline=2))
    straight, run = tmp_path / "straight", tmp_path / "run"
    launch(recipe, straight, timeout=200.0)
    stuck = in_step(3, microbatches=4, rank=1, kind="sleep", where="backward")
    request = Request(signal=signal.SIGTERM, to="0")
    asked = ask(recipe, run, request, stuck, "checkpoint.grace_seconds=10", timeout=200.0)
    assert asked.code == AGAIN and not asked.left_over and 4 < asked.seconds < 40, asked.output
    assert asked.ending is not None and (asked.ending.verdict, asked.ending.step) == ("again", 2)
    assert "step 2 is saved in" in asked.ending.reason and asked.ending.commit in asked.output
    resume(recipe, run, timeout=200.0)
    assert is_the_same(straight, run)


@pytest.mark.timeout(300)
def test_a_second_signal_ends_the_run_at_once(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, data, ParallelConfig())
    request = Request(signal=signal.SIGTERM, to="torchrun", times=2)
    stuck = in_step(2, microbatches=2, rank=0, kind="sleep")
    asked = ask(recipe, tmp_path / "run", request, stuck, "checkpoint.grace_seconds=200", timeout=200.0)
    assert asked.code == AGAIN and not asked.left_over and asked.seconds < 30, asked.output
    assert "ended as SIGTERM asked, at step 2" in asked.output
    assert asked.ending is not None and (asked.ending.verdict, asked.ending.commit) == ("again", None)
