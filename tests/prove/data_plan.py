"""The plan (item 5): what it costs, what it holds, and what it must never do."""

from dataclasses import replace

from tests.harness.plan_measures import (
    plan_faults,
    plan_ten_million,
    shrunk_over_budget,
    spread_over_dealt,
    token_share_off,
)
from tests.harness.resume_measures import awkward_cursors, large_source, resume_at
from tests.prove.case import Case, Cell
from tests.prove.context import Context

LARGE = {
    "ready_seconds": ("10 million samples: from an index to the first step after a jump", 5.0, "s"),
    "seconds_a_million": ("10 million samples: a core's time for a million planned", 1.0, "s"),
    "empty": ("10 million samples: room of rows left empty", 0.01, "of their tokens"),
    "cursor_bytes": ("cursor", 1024, "bytes"),
}
FAULTS = ("missing or twice", "rows over a budget", "shares missed", "steps that differ")
RUN_LENGTHS = (1, 16)
RESUMED = "10 million samples on disk, resumed"
WHERE = ("start", "middle", "end")
WORKERS = (0, 2)
SPREADS = {"patches": "visual load", "cost": "load"}
DP_SIZES = (4, 8)


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {"plan/large": Case(item=5, names=tuple(name for name, _, _ in LARGE.values()), run=_large)}
    found["plan/resumed"] = _resumed()
    for length in RUN_LENGTHS:
        found[f"plan/runs of {length}"] = _epochs(length)
    found["plan/balance"] = _balance()
    names = ("weights of tokens: share missed in a window", "shrunk samples: over a budget")
    found["plan/lengths"] = Case(item=5, names=names, run=_lengths)
    return found


def _large(context: Context) -> list[Cell]:
    measured = context.run(1, plan_ten_million)[0]
    return [
        Cell(name=name, measured=getattr(measured, key), limit=limit, unit=unit)
        for key, (name, limit, unit) in LARGE.items()
    ]


def _resumed() -> Case:
    times = {
        (where, workers): f"{RESUMED} at the {where}, {workers} workers: from its files to the first batch"
        for where in WHERE
        for workers in WORKERS
    }
    wrong = tuple(
        f"{RESUMED}: {what}"
        for what in ("requests beyond those of the rows read", "bytes beyond theirs", "samples that were not due")
    )

    def run(context: Context) -> list[Cell]:
        config = large_source(context.scratch / "large", 10_000_000)
        cursors = awkward_cursors(config)
        found = {
            (where, workers): context.run_here(
                resume_at, config=replace(config, workers=workers), cursor=cursors[where]
            )
            for where, workers in times
        }
        cells = [
            Cell(name=name, measured=found[key].seconds, limit=5.0, unit=f"s; {found[key].split}")
            for key, name in times.items()
        ]
        sums = [sum(getattr(one, field) for one in found.values()) for field in ("requests_off", "bytes_off", "others")]
        return cells + [
            Cell(name=name, measured=total, limit=0, unit="") for name, total in zip(wrong, sums, strict=True)
        ]

    return Case(item=5, names=(*times.values(), *wrong), run=run)


def _balance() -> Case:
    names = {
        (size, kind): f"DP {size}, 200 steps of a mixed plan: spread of {load} over that of rows dealt in turn"
        for size in DP_SIZES
        for kind, load in SPREADS.items()
    }

    def run(context: Context) -> list[Cell]:
        found = {size: context.run_here(spread_over_dealt, dp_size=size) for size in DP_SIZES}
        return [
            Cell(name=name, measured=found[size][kind], limit=0.5, unit="of it") for (size, kind), name in names.items()
        ]

    return Case(item=10, names=tuple(names.values()), run=run)


def _epochs(length: int) -> Case:
    names = tuple(f"3 epochs, runs of {length}: {fault}" for fault in FAULTS)

    def run(context: Context) -> list[Cell]:
        found = context.run(1, plan_faults, run_length=length)[0]
        return [
            Cell(name=name, measured=found[fault], limit=0, unit="") for name, fault in zip(names, FAULTS, strict=True)
        ]

    return Case(item=5, names=names, run=run)


def _lengths(context: Context) -> list[Cell]:
    first, second = "weights of tokens: share missed in a window", "shrunk samples: over a budget"
    return [
        Cell(name=first, measured=context.run(1, token_share_off)[0], limit=0.01, unit="of the tokens"),
        Cell(name=second, measured=context.run(1, shrunk_over_budget)[0], limit=0, unit="samples and rows"),
    ]
