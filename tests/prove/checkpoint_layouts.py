"""Saved on one layout, gone on from on another (item 2), and three stages in a row (item 11)."""

from parallel.config import ParallelConfig
from tests.harness import run_faults
from tests.harness.lives import apart
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context

LIMIT = 1e-5
SPLIT = {
    "DP4": (4, ParallelConfig()),
    "PP2 of 1 and 3 layers": (2, ParallelConfig(pipeline=2, split=(1, 3))),
}
CHANGES = (
    ("stage1", "tied", "DP2", "TP2"),
    ("stage1", "untied", "PP2", "DP2"),
    ("stage1", "tied", "TP2xPP2", "one process"),
    ("stage1", "untied", "DP2xTP2+SP", "PP2"),
    ("stage2", "tied", "one process", "DP2xPP2"),
    ("stage2", "tied", "PP2", "TP2+SP"),
    ("stage2", "untied", "TP2", "PP2"),
    ("stage2", "tied", "DP2xTP2", "TP2xPP2"),
    ("stage2", "untied", "DP4", "DP2"),
    ("stage2", "tied", "PP2", "PP2 of 1 and 3 layers"),
    ("stage3", "untied", "TP2xPP2+SP", "DP2xTP2"),
    ("stage3", "tied", "DP2", "PP2"),
    ("stage3", "tied", "DP2xPP2", "one process"),
    ("stage3", "untied", "one process", "DP4"),
)
SAME = (
    ("stage1", "untied", "PP2"),
    ("stage2", "tied", "DP2"),
    ("stage2", "tied", "TP2xPP2"),
    ("stage3", "untied", "TP2+SP"),
)
STEPS = run_faults.LAYOUT_STEPS - run_faults.CUT


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {
        f"layout/{stage}/{tied}/{one} to {other}": _change(stage, tied, one, other)
        for stage, tied, one, other in CHANGES
    }
    found |= {f"same/{stage}/{layout}": _same(stage, tied, layout) for stage, tied, layout in SAME}
    return found | {"chain": _chain()}


def _of(layout: str) -> tuple[int, ParallelConfig]:
    return (LAYOUTS | SPLIT)[layout]


def _change(stage: str, tied: str, one: str, other: str) -> Case:
    title = f"{stage}, {tied}, saved on {one}, gone on with on {other}"
    names = tuple(
        f"{title}: {what} of {STEPS} steps"
        for what in ("loss", "gradient norm", "weights after the last", "other samples in any")
    )

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / f"{stage} {tied} {one} {other}".replace(" ", "_")
        found, _ = run_faults.changed_layout(
            context.worlds.nursery,
            folder,
            context.data,
            stage,
            tied == "tied",
            (_of(one), _of(other)),
            context.plant,
        )
        values = (found.loss, found.norm, found.weight, found.rows)
        limits, units = (LIMIT, LIMIT, LIMIT, 0), ("relative", "relative", "relative", "steps")
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, value, limit, unit in zip(names, values, limits, units, strict=True)
        ]

    return Case(item=2, names=names, run=run)


def _same(stage: str, tied: str, layout: str) -> Case:
    name = f"{stage}, {tied}, saved and gone on with on {layout}: tensors and steps of another bit"

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / f"{stage} {layout}".replace(" ", "_")
        _, unlike = run_faults.changed_layout(
            context.worlds.nursery,
            folder,
            context.data,
            stage,
            tied == "tied",
            (_of(layout), _of(layout)),
            context.plant,
        )
        return [Cell(name=name, measured=unlike, limit=0, unit="count")]

    return Case(item=2, names=(name,), run=run)


def _chain() -> Case:
    layouts = {"stage1": "DP2xTP2", "stage2": "TP2xPP2", "stage3": "DP4"}
    names = tuple(
        f"{stage} of the chain on {layout}, killed once, against one process: {what}"
        for stage, layout in layouts.items()
        for what in ("loss", "gradient norm", "weights", "steps on other samples")
    )

    def run(context: Context) -> list[Cell]:
        nursery, cells = context.worlds.nursery, []
        folder = context.scratch / "chain"
        alone = run_faults.chain(nursery, folder / "alone", context.data, parallel=False, plant=context.plant)
        spread = run_faults.chain(nursery, folder / "spread", context.data, parallel=True, plant=context.plant)
        for one, other in zip(alone, spread, strict=True):
            found = apart(one, other)
            cells += [(found.loss, LIMIT), (found.norm, LIMIT), (found.weight, LIMIT), (found.rows, 0)]
        return [
            Cell(name=name, measured=value, limit=limit, unit="relative" if limit else "steps")
            for name, (value, limit) in zip(names, cells, strict=True)
        ]

    return Case(item=11, names=names, run=run)
