"""Runs in which one rank dies or stalls: the job ends in time, and one message says which, where and with what.

All faults on all axes: `make prove-parallel ARGS="--only faults/"`.
"""

from dataclasses import replace
from pathlib import Path

from parallel.config import ParallelConfig
from tests.harness.asked import fail_life
from tests.harness.faulty import Fault
from tests.harness.reports import Run, wrong_in_file, wrong_in_report
from tests.harness.runs import Ended, Recipe, data_config, fail, make_data, read_recipe, write_recipe
from tests.prove.context import Worlds
from train.ending import read_ending

# Signs of life are 2 s apart by default, and these steps take less.
KILLED = Fault(kind="kill", where="forward", rank=1, microbatch=1, microbatches=2)
STALLED = Fault(kind="sleep", where="backward", rank=1, microbatch=2, microbatches=4)


def recipe_of(folder: Path, parallel: ParallelConfig) -> Recipe:
    return write_recipe(folder / "recipe", make_data(folder / "data"), "stage2", parallel, processes=2)


def is_told(folder: Path, parallel: ParallelConfig, fault: Fault, ended: Ended, seconds: float) -> None:
    run = Run(data=data_config(folder / "data"), parallel=parallel, processes=2)
    assert wrong_in_report(run, fault, ended) == [], ended.output
    assert ended.seconds < seconds and not ended.left_over and ended.code != 0
    (kept,) = (folder / "run" / "faults").glob("*.txt")
    assert kept.read_text() in ended.output
    for rank in range(2):
        left = (kept.with_suffix("") / f"rank_{rank:05d}.txt").read_text()
        assert wrong_in_file(run, fault, rank, left) == [], left
    ending = read_ending(folder / "run")
    assert ending is not None and (ending.verdict, ending.step, ending.commit) == ("failed", 2, None)


def test_a_rank_that_dies_ends_the_job_and_is_named(tmp_path: Path) -> None:
    """By torchrun, which has something to say of it too."""
    recipe = recipe_of(tmp_path, ParallelConfig())
    ended = fail(recipe, tmp_path / "run", KILLED, "parallel.timeout_seconds=600")
    is_told(
        tmp_path, ParallelConfig(), KILLED, ended, 50.0
    )  # after 60 s of silence it would be found without being looked for


def test_a_rank_that_stalls_ends_the_job_and_is_named(tmp_path: Path, worlds: Worlds) -> None:
    parallel = ParallelConfig(pipeline=2)
    run = read_recipe(recipe_of(tmp_path, parallel))
    run = replace(run, run_dir=str(tmp_path / "run"), parallel=replace(run.parallel, timeout_seconds=40.0))
    is_told(tmp_path, parallel, STALLED, fail_life(worlds.nursery, run, 2, STALLED), 40.0)
