"""A run as users start it on a cluster, `triptych slurm`, to which something happens on its way; against one to which
nothing did."""

import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.harness.asked import in_step
from tests.harness.runs import Recipe, _marked, compare_runs, launch
from tests.harness.slurm import Cluster
from train.ending import read_ending

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
HELD_STEP = 4
"""In which rank 1 waits until what is to happen has; the commit before it is of step 2."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What became of a job."""

    wrong: list[str]
    """Of its state, its log, its verdict."""
    left_over: int
    """Processes."""
    seconds: float
    """From what happened to the job's end."""
    unlike: float
    """Tensors and steps unlike the run's to which nothing happened; infinite where it has not come to its end."""


Happening = Callable[[Cluster, int, str], None]
"""What happens to a job (its number, the mark of its processes) while rank 1 is held."""


def tell(
    slurm: Cluster,
    recipe: Recipe,
    straight: Path,
    folder: Path,
    happens: Happening,
    restarts: int = 1,
    words: tuple[str, ...] = (),
    plant: str | None = None,
) -> Story:
    """Submit to two nodes, let it happen in the middle of HELD_STEP, and wait for the end.

    Args:
        restarts: of the job, as they are due.
        words: that its log has to have.
        plant: a defect of what starts the ranks.
    """
    if not straight.exists():
        launch(recipe, straight, "checkpoint.every_steps=2")
    mark, run, moment = uuid.uuid4().hex, folder / "run", folder / "moment"
    job = slurm.order(*_arguments(recipe, run), *_planted(folder, plant), **_environment(folder, moment, mark))
    log = run / "logs" / f"job_{job}.log"
    _await(moment.exists, 300, lambda: _told(log) or str(slurm.job(job)))
    began = time.monotonic()
    happens(slurm, job, mark)
    (folder / "go on").touch()
    ended = slurm.await_state(job, OVER, 500)
    seconds, ending = time.monotonic() - began, read_ending(run)
    told = _told(log)
    found = {
        f"verdict {ending}": ending is not None and ending.verdict == "done",
        f"job {ended['JobState']}": (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"),
        "a rank without a log of its own": len(list((run / "logs").glob("rank_0000[01].log"))) == 2,
        "ranks of one node alone": _hosts(run) == {"n1", "n2"},
        f"{ended['Restarts']} restarts": int(ended["Restarts"]) == restarts,
        **{f"no {word!r} in the log": word in told for word in words},
    }
    wrong = [what for what, right in found.items() if not right]
    return Story(
        wrong=[*wrong, told[-4000:]] if wrong else [],
        left_over=len(_marked(mark)),
        seconds=seconds,
        unlike=_unlike(straight, run),
    )


def node_lost(slurm: Cluster, job: int, mark: str) -> None:
    """The second node of the job, and it comes back once SLURM has put the job in the queue."""
    slurm.lose("n2")
    slurm.await_state(job, ("PENDING",), 200)
    slurm.bring_back("n2")


def warned(slurm: Cluster, job: int, mark: str) -> None:
    """What --signal does when the time comes."""
    slurm.ask("scancel", "--signal=USR1", str(job))


def preempted(slurm: Cluster, job: int, mark: str) -> None:
    """A job that goes first wants both nodes, for a moment."""
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--wrap=true", "--output=/dev/null")
    slurm.await_state(urgent, OVER, 200)


def rank_killed(slurm: Cluster, job: int, mark: str) -> None:
    """As by a kernel that has no memory left; no node is lost, and the job keeps its place."""
    (victim,) = [pid for pid in _marked(mark) if _rank_of(pid) == "1"]
    os.kill(victim, signal.SIGKILL)


def _unlike(straight: Path, run: Path) -> float:
    try:
        found = compare_runs(straight, run)
    except (AssertionError, OSError, ValueError):  # no commit, or other steps
        return math.inf
    return found.weights + found.state + found.rows + found.curves


def _planted(folder: Path, plant: str | None) -> list[str]:
    """Has the job's scripts start Python with a defect in it; ranks have theirs from PYTHON_EXEC."""
    if plant is None:
        return []
    wrapper = folder / "planted"
    wrapper.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m tests.prove.planted {plant} \"$@\"\n")
    wrapper.chmod(0o755)
    return [f"--sbatch=--export=ALL,PYTHON={wrapper}"]


def _arguments(recipe: Recipe, run: Path) -> list[str]:
    return [
        *("--config-path", str(recipe.folder), "--config-name", recipe.name, "--nodes", "2", "--gpus-per-node", "1"),
        *("--time", "30", f"run_dir={run}", "checkpoint.every_steps=2", "checkpoint.grace_seconds=60"),
    ]


def _environment(folder: Path, moment: Path, mark: str) -> dict[str, str]:
    """Ranks of the first start wait in HELD_STEP; those of the next ones do not."""
    fault = replace(in_step(HELD_STEP, microbatches=2, rank=1, kind=f"until {folder / 'go on'}"), moment=str(moment))
    wrapper = folder / "python"
    wrapper.write_text(
        f"#!/bin/sh\n[ -e '{moment}' ] && exec '{sys.executable}' \"$@\"\n"
        f"exec '{sys.executable}' -u -m tests.harness.faulty '{fault.to_json()}' - \"$@\"\n"
    )
    wrapper.chmod(0o755)
    return {
        "PYTHON_EXEC": str(wrapper),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "TRIPTYCH_TEST_RUN": mark,
    }


def _hosts(run: Path) -> set[str]:
    """Nodes whose ranks have said which one they are on."""
    lines = [line for path in (run / "logs").glob("rank_*.log") for line in path.read_text().splitlines()]
    return {line.split(", ")[1] for line in lines if line.startswith("--- ")}


def _rank_of(pid: int) -> str:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    is_rank = b"train" in command and Path(f"/proc/{pid}/comm").read_text().strip() != "tee"
    return next((word[5:].decode() for word in environment if word.startswith(b"RANK=") and is_rank), "")


def _await(there: Callable[[], bool], seconds: float, say: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, say()
        time.sleep(0.1)


def _told(log: Path) -> str:
    return log.read_text() if log.exists() else ""
