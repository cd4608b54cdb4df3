"""Checkpoints that are uploaded, and gone on from when the run's folder is lost (item 9)."""

from tests.harness.stored_runs import lost_run
from tests.prove.case import Case, Cell
from tests.prove.context import Context

WAYS = {
    "gone": "its folder lost after three steps",
    "killed": "killed in the middle of an upload, started again, its folder lost",
    "damaged": "its folder lost, and a bit flipped in the newest commit of the bucket",
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {f"storage/{how}": _lost(how, told) for how, told in WAYS.items()}


def _lost(how: str, told: str) -> Case:
    names = (
        f"a run on DP2 that uploads, {told}: loss, norm and weights at the end, from those of a run that lost nothing",
        f"a run on DP2 that uploads, {told}: commits in the bucket that are not whole, or not there",
    )

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / f"storage_{how}"
        found = lost_run(context.worlds.nursery, folder, context.data, how, context.plant)
        return [
            Cell(name=names[0], measured=found.apart, limit=0, unit=f"gone on from step {found.from_step}"),
            Cell(name=names[1], measured=found.unsound, limit=0, unit="commits"),
        ]

    return Case(item=9, names=names, run=run)
