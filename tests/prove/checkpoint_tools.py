"""`triptych checkpoint` on what a 72B writes on 512 ranks (item 7), and on disks that fail (item 10)."""

from collections.abc import Callable

from tests.harness import half_written, large_commits
from tests.prove.case import Case, Cell
from tests.prove.context import Context

LIMIT = 60.0
"""Seconds, of two processors that do other things as well."""
WHOLE = ("list", "show")
NARROW = ("list", "show", "verify", "diff", "average", "export", "import", "prune")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {
        "tools/whole": _timed(
            "a 72B's commit of 512 ranks, full sizes in sparse files",
            WHOLE,
            lambda context: large_commits.timed_sparse(context.scratch / "whole"),
        ),
        "tools/narrow": _timed(
            "as many ranks, files and tensors, these small",
            NARROW,
            lambda context: large_commits.timed_narrow(context.scratch / "narrow", context.data),
        ),
        "tools/failing disk": _failing(),
    }


def _failing() -> Case:
    title = "triptych checkpoint import and average, no room on the disk or an I/O error at any of their calls"
    names = tuple(f"{title}: {what}" for what in ("faults after which something is left", "faults that are not told"))

    def run(context: Context) -> list[Cell]:
        left, untold, count = context.run_here(half_written.left_behind, folder=context.scratch / "failing")
        return [
            Cell(name=name, measured=len(found), limit=0, unit=f"of {count}; {', '.join(found[:2])}".rstrip("; "))
            for name, found in zip(names, (left, untold), strict=True)
        ]

    return Case(item=10, names=names, run=run)


def _timed(title: str, commands: tuple[str, ...], measure: Callable[[Context], dict[str, float]]) -> Case:
    names = {command: f"{title}: triptych checkpoint {command}" for command in commands}

    def run(context: Context) -> list[Cell]:
        seconds = measure(context)
        return [Cell(name=names[name], measured=seconds[name], limit=LIMIT, unit="s") for name in commands]

    return Case(item=7, names=tuple(names.values()), run=run)
