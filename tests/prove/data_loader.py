"""The loader (item 10): killed workers, memory over steps, what a killed trainer leaves; bad samples (item 6)."""

from tests.harness.limits import limit_faults
from tests.harness.loader_measures import growth, killed_workers, left_behind, rows_that_differ
from tests.prove.case import Case, Cell, Injected
from tests.prove.context import Context

STEPS, EVERY = 60, 7
KILLED = ("samples lost", "samples repeated", "rows with another bit")
LEFT = ("processes", "files")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    killed = tuple(f"a worker killed every {EVERY} steps: {what}" for what in (*KILLED, "workers not replaced"))
    same = ("loaders over DP 1, 2, 4, 0 and 2 workers, 1 and 4 steps ahead: rows with another bit",)
    left = tuple(f"trainer killed: {what} left" for what in LEFT)
    limits = (
        "more bad samples than data.bad_share: runs that went on",
        "more bad samples in a row than data.bad_in_row: runs that went on",
        "no limit passed yet: runs that stopped",
    )
    grown = tuple(f"{what} of trainer and workers from step 200 to 2000" for what in ("memory", "descriptors"))

    def after_kills(context: Context) -> list[Cell]:
        found = context.run(1, killed_workers, steps=STEPS, every=EVERY)[0]
        values = (found.lost, found.repeated, found.differing, STEPS // EVERY - found.workers)
        return [Cell(name=name, measured=value, limit=0, unit="") for name, value in zip(killed, values, strict=True)]

    def over_layouts(context: Context) -> list[Cell]:
        differing, rows = context.run_here(rows_that_differ, steps=6)
        return [Cell(name=same[0], measured=differing, limit=0, unit=f"of {rows} rows")]

    def after_steps(context: Context) -> list[Cell]:
        megabytes, descriptors = context.run(1, growth, steps=2000, settled=200)[0]
        return [
            Cell(name=grown[0], measured=megabytes, limit=16.0, unit="MB"),
            # A worker that is just sending a row has a few open.
            Cell(name=grown[1], measured=descriptors, limit=8, unit="more"),
        ]

    def after_death(context: Context) -> list[Cell]:
        found = context.run(1, left_behind, plant=context.plant)[0]
        return [Cell(name=name, measured=found[what], limit=0, unit="") for name, what in zip(left, LEFT, strict=True)]

    def with_bad_samples(context: Context) -> list[Cell]:
        *found, runs = context.run_here(limit_faults)
        unit = f"of {runs} runs"
        return [Cell(name=name, measured=value, limit=0, unit=unit) for name, value in zip(limits, found, strict=True)]

    return {
        "loader/killed": Case(item=10, names=killed, run=after_kills, fault=_kills(killed)),
        "loader/layouts": Case(item=5, names=same, run=over_layouts),
        "loader/memory": Case(item=10, names=grown, run=after_steps),
        "loader/left": Case(item=10, names=left, run=after_death),
        "loader/limits": Case(item=6, names=limits, run=with_bad_samples),
    }


def _kills(names: tuple[str, ...]) -> Injected:
    what = f"SIGKILL of a worker every {EVERY} steps"
    return Injected(numbers=(28,), what=what, outcome="the same rows", lost=names[0], repeated=names[1])
