"""The whole way (item 11): object storage that throttles, cuts and flips, a killed worker, a decoder that hangs."""

import tempfile
from pathlib import Path

from tests.harness.whole_way import whole_way
from tests.prove.case import Case, Cell
from tests.prove.context import Context

STEPS = 50
COUNTED = ("weights", "state", "rows", "curves")
STRUCK = (
    "workers killed",
    "decoders stopped",
    "requests refused by the throttle",
    "bodies resumed after a cut",
    "bodies cut or flipped",
)


def cases() -> dict[str, Case]:
    """Every case by its key."""
    runs = [
        f"{name} decode cache: {kind} that differ from the folder's" for name in ("cold", "warm") for kind in COUNTED
    ]
    names = (*runs, "samples that could not be used", *(f"{what}: not once" for what in STRUCK))

    def run(_: Context) -> list[Cell]:
        with tempfile.TemporaryDirectory(prefix="triptych-whole-way-") as folder:
            found = whole_way(Path(folder), STEPS)
        counts = [getattr(one, kind) for one in (found.cold, found.warm) for kind in COUNTED]
        missing = [int(found.struck[what] == 0) for what in STRUCK]
        values = [*counts, found.quarantined, *missing]
        unit = f"of {found.cold.tensors} tensors and {found.cold.steps} steps; struck: {found.struck}"
        return [Cell(name=name, measured=value, limit=0, unit=unit) for name, value in zip(names, values, strict=True)]

    return {"whole way": Case(item=11, names=names, run=run)}
