"""Real runs that are asked to end, by each signal and to each process that may get one: saved, told, nothing left, and
gone on from bit for bit. How ranks agree: tests/parallel/test_stop.py."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from launch.jobs.resume import plan_resume
from parallel.config import ParallelConfig
from tests.harness.asked import AGAIN, Asked, Request, ask, ask_life, in_step, steps_recorded
from tests.harness.run_faults import well
from tests.harness.runs import STEPS, Recipe, compare_runs, make_data, read_recipe, write_recipe
from tests.prove.context import Worlds
from train.checkpoint.commits import attempts
from train.ending import read_ending


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def recipe_of(folder: Path, data: Path, parallel: ParallelConfig) -> Recipe:
    return write_recipe(folder / "recipe", data, "stage2", parallel, processes=2)


def ended_in_order(asked: Asked, run: Path, step: int, name: str) -> None:
    assert asked.code == AGAIN and not asked.left_over, asked.output
    assert asked.ending is not None and (asked.ending.verdict, asked.ending.step) == ("again", step)
    assert name in asked.ending.reason
    newest = attempts(run)[0]
    assert newest.sealed and (newest.step, newest.path.name) == (step, asked.ending.commit)
    assert asked.output.count(f"ended as {name} to rank") == 1 and "Traceback" not in asked.output, asked.output
    assert steps_recorded(run)[-1] == step


def is_the_same(one: Path, other: Path) -> bool:
    difference = compare_runs(one, other)
    assert difference.tensors > 200 and difference.steps == STEPS
    return difference.weights == difference.state == difference.rows == difference.curves == 0


@pytest.mark.timeout(900)
def test_a_run_that_is_asked_to_end_again_and_again_ends_as_one_that_never_was(
    data: Path, tmp_path: Path, worlds: Worlds
) -> None:
    """By torchrun's signal, one rank's and everybody's; the run that never was has no torchrun."""
    recipe = recipe_of(tmp_path, data, ParallelConfig())
    whole = replace(read_recipe(recipe), run_dir=str(tmp_path / "straight"))
    straight, run = Path(whole.run_dir), tmp_path / "run"
    well(worlds.nursery.live(whole, 2))
    ending = read_ending(straight)
    assert ending is not None and (ending.verdict, ending.step) == ("done", STEPS)

    fault = in_step(2, microbatches=2, rank=1)
    asked = ask(recipe, run, Request(signal=signal.SIGUSR1, to="torchrun"), fault, timeout=200.0)
    ended_in_order(asked, run, 2, "SIGUSR1")
    # Before a weight was there the ranks have looked at each other; each has a log of its own.
    assert asked.output.index("  versions    ok") < asked.output.index("first weights: ")
    assert all((run / "logs" / f"rank_0000{rank}.log").read_text().startswith("--- ") for rank in range(2))

    fault = in_step(1, microbatches=2, rank=1)
    again = plan_resume(run, processes=2).run
    asked = ask_life(worlds.nursery, again, 2, Request(signal=signal.SIGTERM, to="1"), fault)
    ended_in_order(asked, run, 3, "SIGTERM")

    asked = ask(recipe, run, Request(signal=signal.SIGINT, to="all"), fault, resumed=True, timeout=200.0)
    ended_in_order(asked, run, 4, "SIGINT")

    well(worlds.nursery.live(plan_resume(run, processes=2).run, 2))
    assert is_the_same(straight, run)
    ending = read_ending(run)
    assert ending is not None and (ending.verdict, ending.step) == ("done", STEPS)


def test_a_step_that_never_ends_is_dropped_and_the_one_before_is_gone_on_from(
    data: Path, tmp_path: Path, worlds: Worlds
) -> None:
    recipe = recipe_of(tmp_path, data, ParallelConfig(pipeline=2))
    whole = replace(read_recipe(recipe), run_dir=str(tmp_path / "straight"))
    well(worlds.nursery.live(whole, 2))
    stuck = in_step(3, microbatches=4, rank=1, kind="sleep", where="backward")
    grace = replace(whole.checkpoint, grace_seconds=6.0)
    run = replace(whole, run_dir=str(tmp_path / "run"), checkpoint=grace)
    asked = ask_life(worlds.nursery, run, 2, Request(signal=signal.SIGTERM, to="0"), stuck)
    assert asked.code == AGAIN and not asked.left_over and 2 < asked.seconds < 100, asked.output
    assert asked.ending is not None and (asked.ending.verdict, asked.ending.step) == ("again", 2)
    assert "step 2 is saved in" in asked.ending.reason and asked.ending.commit in asked.output
    well(worlds.nursery.live(plan_resume(Path(run.run_dir), processes=2).run, 2))
    assert is_the_same(Path(whole.run_dir), Path(run.run_dir))


@pytest.mark.timeout(300)
def test_a_second_signal_ends_the_run_at_once(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, data, ParallelConfig())
    request = Request(signal=signal.SIGTERM, to="torchrun", times=2)
    stuck = in_step(2, microbatches=2, rank=0, kind="sleep")
    asked = ask(recipe, tmp_path / "run", request, stuck, "checkpoint.grace_seconds=200", timeout=200.0)
    assert asked.code == AGAIN and not asked.left_over and asked.seconds < 100, asked.output
    assert "ended as SIGTERM asked, at step 2" in asked.output
    assert asked.ending is not None and (asked.ending.verdict, asked.ending.commit) == ("again", None)
