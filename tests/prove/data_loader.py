"""The loader (item 10): killed workers, memory over thousands of steps, what a killed trainer leaves."""

from tests.harness.loader_measures import killed_workers, left_behind, memory_growth
from tests.prove.case import Case, Cell
from tests.prove.context import Context

STEPS, EVERY = 60, 7
KILLED = ("samples lost", "samples repeated", "rows with another bit")
LEFT = ("processes", "files")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    killed = tuple(f"a worker killed every {EVERY} steps: {what}" for what in (*KILLED, "workers not replaced"))
    left = tuple(f"trainer killed: {what} left" for what in LEFT)
    growth = ("memory of trainer and workers from step 200 to 2000",)

    def after_kills(context: Context) -> list[Cell]:
        found = context.run(1, killed_workers, steps=STEPS, every=EVERY)[0]
        values = (found.lost, found.repeated, found.differing, STEPS // EVERY - found.workers)
        return [Cell(name=name, measured=value, limit=0, unit="") for name, value in zip(killed, values, strict=True)]

    def after_steps(context: Context) -> list[Cell]:
        found = context.run(1, memory_growth, steps=2000, settled=200)[0]
        return [Cell(name=growth[0], measured=found, limit=16.0, unit="MB")]

    def after_death(context: Context) -> list[Cell]:
        found = context.run(1, left_behind)[0]
        return [Cell(name=name, measured=found[what], limit=0, unit="") for name, what in zip(left, LEFT, strict=True)]

    return {
        "loader/killed": Case(item=10, names=killed, run=after_kills),
        "loader/memory": Case(item=10, names=growth, run=after_steps),
        "loader/left": Case(item=10, names=left, run=after_death),
    }
