"""A rank that raises, dies or stalls in a real run (item 7): the job ends in time, and one message says all."""

import re
import time
from dataclasses import replace

from parallel.config import ParallelConfig
from tests.harness.faulty import Fault
from tests.harness.layouts import start
from tests.harness.reports import Run, wrong_in_report
from tests.harness.runs import Ended, data_config, fail, write_recipe
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context
from train.state import TrainState
from train.step import train_step

TIMEOUT = 24.0
"""parallel.timeout_seconds of these runs. On a quiet host 12 would do; a busy one is slow to end processes too."""

FAULTS = {
    "DP2": (
        Fault(kind="kill", where="forward", rank=1, microbatch=1),
        Fault(kind="stop", where="reduce", rank=0),
        Fault(kind="sleep", where="decode", rank=1),
        Fault(kind="mendable", where="data", rank=0),
        Fault(kind="sleep", where="save", rank=1),
    ),
    "PP2": (
        Fault(kind="kill", where="backward", rank=1, microbatch=2),
        Fault(kind="sleep", where="forward", rank=0, microbatch=3),
    ),
    "TP2": (
        Fault(kind="raise", where="backward", rank=1, microbatch=1),
        Fault(kind="spin", where="forward", rank=0, microbatch=2),
    ),
    "DP2xPP2": (
        Fault(kind="raise", where="update", rank=3),
        Fault(kind="sleep", where="backward", rank=1, microbatch=0),
        Fault(kind="kill", where="forward", rank=2, microbatch=1),
    ),
    "one process": (Fault(kind="sleep", where="forward", rank=0, microbatch=1),),
}
"""By layout. Every kind, every axis, every phase, rank 0 as well as others."""

SAID = {
    "mendable": r"^\[ranks 0-1\] planted fault that a user can mend \(\S+faulty\.py:\d+\)$",
    "ask": r"^\[ranks 0-1\] ended as SIGTERM asked, at step 3, update$",
    "orphan": r"^\[rank \d\] rank \d \(dp \d, tp 0, pp 0\) at step 3, \w+: the job's store is gone",
}
"""Where no rank is to blame: what has to be said, and no report with stacks."""
TIMES_SAID = {"mendable": 1, "ask": 1, "orphan": 2}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {
        f"faults/{layout}/{fault.kind} in {fault.where}": _blamed(layout, fault)
        for layout, faults in FAULTS.items()
        for fault in faults
    }
    everywhere = {
        "mendable": Fault(kind="mendable", where="data"),
        "ask": Fault(kind="ask", where="update"),
        "orphan": Fault(kind="orphan", where="update"),
    }
    found |= {f"faults/DP2/{kind} everywhere": _blameless(kind, fault) for kind, fault in everywhere.items()}
    return found | {"faults/cost": _cost()}


def _run(context: Context, layout: str, fault: Fault) -> tuple[Run, Fault, Ended]:
    size, parallel = LAYOUTS[layout]
    name = re.sub(r"\W+", "_", f"{layout}_{fault.kind}_{fault.where}_{fault.rank}_{context.plant}")
    recipe = write_recipe(context.scratch / name, context.data, "stage2", parallel, size)
    run = Run(data=data_config(context.data), parallel=parallel, processes=size)
    fault = replace(fault, microbatches=run.data.rows_per_step // run.grid.dp_size)
    overrides = (f"parallel.timeout_seconds={TIMEOUT}", "checkpoint.every_steps=3")
    ended = fail(recipe, recipe.folder / "run", fault, *overrides, plant=context.plant, timeout=8 * TIMEOUT)
    return run, fault, ended


def _cells(names: tuple[str, ...], ended: Ended, wrong: list[str]) -> list[Cell]:
    if wrong:
        print(f"{wrong}\n{ended.output}", flush=True)
    seconds, said, left = names
    return [
        Cell(name=seconds, measured=ended.seconds, limit=TIMEOUT, unit="s"),
        Cell(name=said, measured=len(wrong), limit=0, unit="things"),
        Cell(name=left, measured=len(ended.left_over), limit=0, unit="processes"),
    ]


def _names(what: str) -> tuple[str, ...]:
    return (f"{what}: from the fault to the end of all", f"{what}: wrong in what is said", f"{what}: left running")


def _blamed(layout: str, fault: Fault) -> Case:
    names = _names(f"{layout}, rank {fault.rank}, {fault.kind} in {fault.where}")

    def run(context: Context) -> list[Cell]:
        where, planted, ended = _run(context, layout, fault)
        wrong = wrong_in_report(where, planted, ended)
        return _cells(names, ended, wrong if ended.code else [*wrong, "the run ends well"])

    return Case(item=7, names=names, run=run)


def _blameless(kind: str, fault: Fault) -> Case:
    names = _names(f"DP2, {kind} everywhere")

    def run(context: Context) -> list[Cell]:
        _, _, ended = _run(context, "DP2", fault)
        said = len(re.findall(SAID[kind], ended.output, re.MULTILINE))
        wrong = [] if said == TIMES_SAID[kind] else [f"said {said} times"]
        if "the job ends" in ended.output or "main thread" in ended.output:
            wrong.append("stacks")
        return _cells(names, ended, wrong)

    return Case(item=7, names=names, run=run)


def share_of_the_watch(run_dir: str, seconds: float) -> float:
    """CPU seconds that the watch takes on this rank for each second of training; run it in a world."""
    from parallel.watch import Watch
    from parallel.world import model_parallel, pick_device

    config = ParallelConfig(timeout_seconds=40.0)  # signs of life every 2 s, as with any longer one
    with model_parallel(config, pick_device(), seed=0) as groups, Watch(config, run_dir, ()) as watch:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            made = start(config, "stage2", groups)
            made.parts.schedule.board = watch.board
            state = TrainState()
            for step in range(made.num_steps):
                watch.board.begin_step(step + 1, (0, 0))
                train_step(made.parts, state)
            made.optimizer.close()
        assert watch._thread.ident is not None
        spent = time.clock_gettime(time.pthread_getcpuclockid(watch._thread.ident))
        return spent / (time.monotonic() - began)


def _cost() -> Case:
    name = "CPU of the watch, of a second of training"

    def run(context: Context) -> list[Cell]:
        shares = context.run(2, share_of_the_watch, run_dir=str(context.scratch), seconds=12.0)
        return [Cell(name=name, measured=max(shares), limit=0.005, unit="s")]

    return Case(item=7, names=(name,), run=run)
