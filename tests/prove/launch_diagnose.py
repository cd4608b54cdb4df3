"""A run that is stuck, slow or strange (item 5): what it leaves, whom it names, and one step of it once more."""

from dataclasses import replace

from tests.harness.diagnosed import TIMEOUT, replayed, slow_run, stalled_run
from tests.harness.evaluated import train_here
from tests.harness.faulty import Fault
from tests.harness.lives import run_config
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context

STALLS = {
    "DP2": Fault(kind="sleep", where="forward", rank=1, microbatch=1),
    "PP2": Fault(kind="sleep", where="backward", rank=1, microbatch=2),
    "TP2": Fault(kind="stop", where="forward", rank=0, microbatch=3),
}
REPLAYED = ("DP2", "TP2+SP", "PP2")
STEPS = (1, 2, 4, 5)
"""Of a run saved after its third: from its beginning, through a step, right after the checkpoint, and one further."""


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"watchdog/{layout}": _stalled(layout, fault) for layout, fault in STALLS.items()}
    found |= {f"replay/{layout}": _replayed(layout) for layout in REPLAYED}
    return found | {"replay/one process": _same_bits(), "straggler/DP2": _slow()}


def _stalled(layout: str, fault: Fault) -> Case:
    what = f"{layout}, {fault.kind} in {fault.where}"
    names = (
        f"{what}: from the fault to the end of all",
        f"{what}: wrong in the summary",
        f"{what}: wrong in the files of ranks",
        f"{what}: verdicts other than again, and then failed",
    )

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        folder = context.scratch / f"stalled_{layout}_{context.plant}"
        found = stalled_run(context.worlds.nursery, folder, context.data, fault, parallel, size, context.plant)
        wrong = [each.in_report for each in found], [each.in_files for each in found]
        if any(map(any, wrong)):
            print(wrong, flush=True)
        verdicts = sum(each.verdict != word for each, word in zip(found, ("again", "failed"), strict=True))
        values = [max(each.seconds for each in found), *(sum(map(len, each)) for each in wrong), verdicts]
        limits, units = (TIMEOUT, 0, 0, 0), ("s", "things", "things", "verdicts")
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, value, limit, unit in zip(names, values, limits, units, strict=True)
        ]

    return Case(item=5, names=names, run=run)


def _recorded(context: Context, layout: str) -> str:
    size, parallel = LAYOUTS[layout]
    run = run_config(context.scratch / f"recorded_{layout}", context.data, "stage2", parallel, steps=max(STEPS))
    run = replace(run, checkpoint=replace(run.checkpoint, every_steps=3, keep=99))
    context.run(size, train_here, run=run)
    return run.run_dir


def _replayed(layout: str) -> Case:
    names = tuple(
        f"{layout}, steps {', '.join(map(str, STEPS))} replayed: {what}"
        for what in (
            "loss",
            "gradient norm",
            "losses of samples against the step's",
            "steps of other samples, and samples of other targets",
        )
    )

    def run(context: Context) -> list[Cell]:
        found = context.run_here(replayed, run_dir=_recorded(context, layout), steps=STEPS)
        values = (found["loss"], found["norm"], found["sums"], found["samples"])
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, value, limit, unit in zip(
                names, values, (1e-5, 1e-5, 1e-5, 0), (*["relative"] * 3, "things"), strict=True
            )
        ]

    return Case(item=5, names=names, run=run)


def _same_bits() -> Case:
    name = "one process, replayed in one: loss and norm that are not the same number"

    def run(context: Context) -> list[Cell]:
        found = context.run_here(replayed, run_dir=_recorded(context, "one process"), steps=STEPS)
        return [Cell(name=name, measured=(found["loss"] > 0) + (found["norm"] > 0), limit=0, unit="numbers")]

    return Case(item=5, names=(name,), run=run)


def _slow() -> Case:
    names = ("DP2, a rank slow in forward: not named", "DP2, a rank slow in forward: another named more often")

    def run(context: Context) -> list[Cell]:
        said = slow_run(context.worlds.nursery, context.scratch / f"slow_{context.plant}", context.data, context.plant)
        right = said.count(([1], "forward"))
        wrong = max((said.count(each) for each in said if each != ([1], "forward")), default=0)
        return [
            Cell(name=names[0], measured=right == 0, limit=0, unit="runs"),
            Cell(name=names[1], measured=wrong if wrong > right else 0, limit=0, unit="times"),
        ]

    return Case(item=5, names=names, run=run)
