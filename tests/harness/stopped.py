"""Runs that are asked to end by real signals and gone on with, against one that never was."""

import signal
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from parallel.config import ParallelConfig
from tests.harness.asked import AGAIN, Request, ask, in_step
from tests.harness.runs import Recipe, RunDifference, _marked, compare_runs, launch, resume, write_recipe
from tests.harness.slurm import Cluster
from train.checkpoint.commits import attempts
from train.ending import read_ending

STEP = 2
"""In which the signal comes, and after which the run ends."""
STUCK_STEP = 3
"""That never ends."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run that was asked to end, and its next start."""

    wrong: list[str]
    """Of what it left behind: exit code, verdict, step, commit."""
    left_over: int
    """Processes."""
    seconds: float
    """From the signal to the last process's end."""
    difference: RunDifference
    """At the end, from the run that was not asked."""


def recipe_of(folder: Path, data: Path, parallel: ParallelConfig) -> Recipe:
    """Two processes, stage 2."""
    return write_recipe(folder / "recipe", data, "stage2", parallel, processes=2)


def stopped_run(recipe: Recipe, straight: Path, run_dir: Path, request: Request, plant: str | None = None) -> Stopped:
    """Asked in the middle of STEP, through torchrun; `straight` is the run that never was, made if it is missing."""
    return _went_on(recipe, straight, run_dir, request, STEP, ("pause 3", "forward", 2), (), plant)


def stuck_run(recipe: Recipe, straight: Path, run_dir: Path, request: Request, plant: str | None = None) -> Stopped:
    """Asked while STUCK_STEP hangs in a backward: that step is dropped and the one before it committed."""
    where, overrides = ("sleep", "backward", 4), ("checkpoint.grace_seconds=10",)
    return _went_on(recipe, straight, run_dir, request, STUCK_STEP, where, overrides, plant)


def _went_on(
    recipe: Recipe,
    straight: Path,
    run_dir: Path,
    request: Request,
    step: int,
    place: tuple[str, str, int],
    overrides: tuple[str, ...],
    plant: str | None,
) -> Stopped:
    """`place`: kind and phase of the wait in `step`, and the replica's microbatches."""
    kind, where, microbatches = place
    if not straight.exists():
        launch(recipe, straight)
    fault = in_step(step, microbatches, rank=1, kind=kind, where=where)
    asked = ask(recipe, run_dir, request, fault, *overrides, plant=plant)
    due = step if kind != "sleep" else step - 1
    ending, newest = asked.ending, attempts(run_dir)[0]
    found = {
        f"exit code {asked.code}": asked.code == AGAIN,
        f"verdict {ending}": ending is not None and (ending.verdict, ending.step) == ("again", due),
        f"commit {newest.path.name}": newest.sealed and newest.step == due,
        "commit in the verdict": ending is not None and ending.commit == newest.path.name,
        "a traceback": "Traceback" not in asked.output or kind == "sleep",
    }
    resume(recipe, run_dir, plant=plant)
    ending = read_ending(run_dir)
    found[f"verdict {ending}"] = ending is not None and ending.verdict == "done"
    return Stopped(
        wrong=[what for what, right in found.items() if not right],
        left_over=len(asked.left_over),
        seconds=asked.seconds,
        difference=compare_runs(straight, run_dir),
    )


def warned_job(slurm: Cluster, recipe: Recipe, straight: Path, folder: Path, python: str) -> Stopped:
    """The same by launch/train.sbatch on two nodes, warned with SIGUSR1: back in the queue, and on to its end.

    Args:
        python: the interpreter of this environment.
    """
    if not straight.exists():
        launch(recipe, straight)
    mark, moment, run, log = uuid.uuid4().hex, folder / "moment", folder / "run", folder / "log"
    fault = replace(in_step(STEP, microbatches=2, rank=1), moment=str(moment))
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{python}" -u -m tests.harness.faulty \'{fault.to_json()}\' - "$@"\n')
    wrapper.chmod(0o755)
    settings = {"PYTHON": python, "PYTHON_EXEC": str(wrapper), "NPROC_PER_NODE": "1"}
    settings |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "TRIPTYCH_TEST_RUN": mark}
    job = slurm.submit(
        *("--nodes=2", "--gpus-per-node=1", f"--output={log}", "launch/train.sbatch"),
        *("--config-path", str(recipe.folder), "--config-name", recipe.name, f"run_dir={run}"),
        **settings,
    )
    deadline = time.monotonic() + 300
    while not moment.exists():
        assert time.monotonic() < deadline, log.read_text()[-4000:] if log.exists() else slurm.job(job)
        time.sleep(0.1)
    began = time.monotonic()
    slurm.ask("scancel", "--signal=USR1", str(job))  # what --signal does when the time comes
    slurm.await_state(job, ("PENDING",), 120)
    seconds, ending = time.monotonic() - began, read_ending(run)
    ended = slurm.await_state(job, ("COMPLETED", "FAILED", "CANCELLED"), 400)
    told = log.read_text()
    found = {
        f"verdict {ending}": ending is not None and (ending.verdict, ending.step) == ("again", STEP),
        f"job {ended}": (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("COMPLETED", "1", "0:0"),
        "signal in the log": signal.Signals.SIGUSR1.name in told,
        "verdicts in the log": "the verdict is again" in told and "the verdict is done" in told,
    }
    return Stopped(
        wrong=[what for what, right in found.items() if not right],
        left_over=len(_marked(mark)),
        seconds=seconds,
        difference=compare_runs(straight, run),
    )
