"""The whole way (item 11): object storage that throttles, cuts and flips, a killed worker, a decoder that hangs."""

import tempfile
from pathlib import Path

from parallel.config import ParallelConfig
from tests.harness.whole_way import RUNS, STRUCK, whole_way
from tests.prove.case import Case, Cell
from tests.prove.context import Context

STEPS = 50
PLANTED_STEPS = 6
DELIVERED = {
    "lost": "samples lost",
    "repeated": "samples repeated",
    "differing": "rows with another bit or in another place",
}
COUNTED = ("weights", "state", "rows", "curves")
TITLES = {"folder": "from a folder", "cold": "cold decode cache", "warm": "warm decode cache"}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    names = (
        *(f"{TITLES[run]}: {what}" for run in RUNS for what in DELIVERED.values()),
        *(f"{TITLES[run]}: {kind} that differ from the folder's" for run in RUNS[1:] for kind in COUNTED),
        "samples that could not be used",
        *(f"{what}: not once" for what in STRUCK),
    )

    def run(context: Context) -> list[Cell]:
        planted = context.plant is not None  # of a defect, two processes have to show something soon
        steps, parallel = (PLANTED_STEPS, ParallelConfig()) if planted else (STEPS, ParallelConfig(pipeline=2))
        with tempfile.TemporaryDirectory(prefix="triptych-whole-way-") as folder:
            found = whole_way(Path(folder), steps, parallel, processes=2 if planted else 4, plant=context.plant)
        differences = [found.differences[run] for run in RUNS[1:]]
        samples = f"of {found.delivered['folder'].samples} samples and {4 * steps} rows"
        tensors = f"of {differences[0].tensors} tensors and {differences[0].steps} steps"
        measured = [
            *((getattr(found.delivered[run], kind), samples) for run in RUNS for kind in DELIVERED),
            *((getattr(difference, kind), tensors) for difference in differences for kind in COUNTED),
            (found.quarantined, "records"),
            *((int(found.struck[what] == 0), f"{found.struck[what]} times") for what in STRUCK),
        ]
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, (value, unit) in zip(names, measured, strict=True)
        ]

    return {"whole way": Case(item=11, names=names, run=run)}
