"""Runs that are asked to end, through a real torchrun and a real sbatch (item 5)."""

import signal
import sys
from pathlib import Path

from parallel.config import ParallelConfig
from tests.harness import slurm, stopped
from tests.harness.asked import Request
from tests.prove.case import Case, Cell
from tests.prove.context import Context

REQUESTS = (
    Request(signal=signal.SIGUSR1, to="torchrun"),
    Request(signal=signal.SIGUSR1, to="0"),
    Request(signal=signal.SIGTERM, to="torchrun"),
    Request(signal=signal.SIGTERM, to="1"),
    Request(signal=signal.SIGINT, to="all"),
)
STUCK = Request(signal=signal.SIGTERM, to="0")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"signal/{request.signal.name} to {request.to}": _asked(request) for request in REQUESTS}
    return found | {"signal/stuck": _stuck(), "signal/sbatch": _sbatch()}


def _names(title: str) -> tuple[str, ...]:
    return tuple(
        f"{title}: {what}"
        for what in (
            "what it left behind and should not have (exit code, verdict, step, commit)",
            "processes left",
            "tensors and steps unlike the run's that was not asked, at the end",
        )
    )


def _cells(names: tuple[str, ...], found: stopped.Stopped) -> list[Cell]:
    difference = found.difference
    unlike = difference.weights + difference.state + difference.rows + difference.curves
    units = (", ".join(found.wrong) or f"{found.seconds:.1f} s to the end", "processes", f"of {difference.tensors}")
    values = (len(found.wrong), found.left_over, unlike)
    return [
        Cell(name=name, measured=value, limit=0, unit=unit)
        for name, value, unit in zip(names, values, units, strict=True)
    ]


def _folder(context: Context, name: str) -> Path:
    context.worlds.close()  # the run needs the cores
    folder = context.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _asked(request: Request) -> Case:
    to = {"torchrun": "torchrun", "all": "torchrun and both ranks"}.get(request.to, f"rank {request.to}")
    names = _names(f"{request.signal.name} to {to}, DP2, in the middle of a step")

    def run(context: Context) -> list[Cell]:
        folder = _folder(context, "signals")
        recipe = stopped.recipe_of(folder, context.data, ParallelConfig())
        place = folder / f"{request.signal.name}_{request.to}"
        return _cells(names, stopped.stopped_run(recipe, folder / "straight", place, request, context.plant))

    return Case(item=5, names=names, run=run)


def _stuck() -> Case:
    names = _names(f"{STUCK.signal.name} to rank {STUCK.to}, PP2, in a step that never ends, grace of 10 s")

    def run(context: Context) -> list[Cell]:
        folder = _folder(context, "stuck")
        recipe = stopped.recipe_of(folder, context.data, ParallelConfig(pipeline=2))
        return _cells(names, stopped.stuck_run(recipe, folder / "straight", folder / "run", STUCK, context.plant))

    return Case(item=5, names=names, run=run)


def _sbatch() -> Case:
    names = _names("SIGUSR1 as SLURM warns, to a job of two nodes: back in the queue and on to its end")

    def run(context: Context) -> list[Cell]:
        lacks = slurm.missing()
        assert not lacks, f"{', '.join(lacks)} missing: apt-get install slurmctld slurmd slurm-client munge, as root"
        folder = _folder(context, "signals")
        recipe = stopped.recipe_of(folder, context.data, ParallelConfig())
        with slurm.cluster(folder / "slurm") as cluster:
            found = stopped.warned_job(cluster, recipe, folder / "straight", folder, sys.executable)
        return _cells(names, found)

    return Case(item=5, names=names, run=run)
