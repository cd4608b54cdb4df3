"""Object storage: what each fault costs (items 1 and 2), and what readers keep of a limited service (item 3)."""

from collections.abc import Callable
from typing import Any

from tests.harness.oss_cases import CASES, CRC_ONLY, connections_used, expiring_tokens, refused_tokens, run_case
from tests.harness.oss_leaks import forked_readers, left_behind, shown_secrets
from tests.harness.oss_limits import Kept, keep_capacity, killed_readers, storm
from tests.harness.oss_runs import requests_in_runs
from tests.prove.case import Case, Cell, Injected
from tests.prove.context import Context

RUN_LENGTHS = {1: "", 4: ", runs of 4"}  # samples that one request reads
SECONDS = 40.0
RUN_LENGTH = 16
IN_RUNS = {128: 0.125, 32: 0.35}
"""Samples of a row -> share of the requests at most. An eighth of a row stays together: 16 samples, and 4."""
SILENT = {
    "silent limit": ("holds answers back at its capacity and says so", {"budget": 2.0, "delays": True}),
    "latency limit": ("only takes longer", {"budget": 2.0, "delays": True, "told": False, "share": 0.1}),
}
"""The second has few requests a second: a queue of 16 readers is one of 16 answers, and that has to be long."""
LIMITS = {
    "requests, budget 2 capacities": {"budget": 2.0},
    "requests, budget 6 capacities": {"budget": 6.0},
    "bytes, budget 2 capacities": {"budget": 2.0, "by_bytes": True},
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"oss/fault {name}{told}": _fault(name, run) for name in CASES for run, told in RUN_LENGTHS.items()}
    found |= {f"oss/limit {name}": _limit(name) for name in LIMITS}
    for key, (item, measure, limits) in _SMALL.items():
        found[f"oss/{key}"] = _small(key, item, measure, limits)
    found |= {f"oss/{key}": _silent(*told) for key, told in SILENT.items()}
    found["oss/runs"] = _runs()
    return found


def _fault(name: str, run_length: int) -> Case:
    case = CASES[name]
    outcome_due = f"a {case.fatal[0]} that says where" if case.fatal else "the same samples"
    head = f"case {case.number}, {name} ({case.injected}){RUN_LENGTHS[run_length]}, ends in {outcome_due}"
    below = () if name in CRC_ONLY else (f"{head}: wrong answers believed before the CRC",)
    names = (
        f"{head}: samples lost",
        f"{head}: samples repeated",
        f"{head}: places with other bytes",
        f"{head}: what an error lacks, or one that is not due",
        f"{head}: seconds",
        f"{head}: requests that do not name the etag",
        f"{head}: requests and rejections counted otherwise than by the service",
        *below,
        *((f"{head}: bodies begun anew",) if name == "cut body" else ()),
    )

    def run(context: Context) -> list[Cell]:
        found = context.run_here(run_case, name=name, run_length=run_length)
        outcome = found.outcome
        values = (
            (outcome.lost, 0.0, "samples"),
            (outcome.repeated, 0.0, "samples"),
            (outcome.other, 0.0, "samples"),
            (found.missing_words, 0.0, "count"),
            (found.seconds, case.seconds, "s"),
            (found.unasked, 0.0, "requests"),
            (found.miscounted, 0.0, "requests"),
            *(() if name in CRC_ONLY else ((outcome.wrong_below, 0.0, "answers"),)),
            *(((found.asked_again, 0.0, "requests"),) if name == "cut body" else ()),
        )
        return [
            Cell(name=title, measured=measured, limit=limit, unit=unit)
            for title, (measured, limit, unit) in zip(names, values, strict=True)
        ]

    fault = Injected(
        numbers=(case.number,),
        what=f"{name}: {case.injected}{RUN_LENGTHS[run_length]}",
        outcome=outcome_due,
        lost=names[0],
        repeated=names[1],
    )
    return Case(item=2, names=names, run=run, fault=fault)


def _limit(name: str) -> Case:
    head = f"16 readers under a limit of {name}"
    names = (
        f"{head}: share of the capacity not used",
        f"{head}: share of requests rejected",
        f"{head}: reads that failed",
        f"{head}: requests, rejections and bytes counted otherwise than by the service",
    )

    def run(context: Context) -> list[Cell]:
        kept: Kept = context.run_here(keep_capacity, seconds=SECONDS, **LIMITS[name])
        values = ((kept.unused, 0.15), (kept.rejected, 0.02), (kept.failed, 0.0), (kept.miscounted, 0.0))
        return [
            Cell(name=title, measured=measured, limit=limit, unit=f"of {kept.summary}")
            for title, (measured, limit) in zip(names, values, strict=True)
        ]

    return Case(item=3, names=names, run=run)


def _silent(what: str, service: dict[str, Any]) -> Case:
    head = f"case 2, a service that {what}"
    names = (
        f"{head}: by how long with the limiter, as a share of that without",
        f"{head}: share of the capacity not used",
        f"{head}: reads that failed",
    )

    def run(context: Context) -> list[Cell]:
        kept = context.run_here(keep_capacity, seconds=SECONDS, **service)
        free = context.run_here(keep_capacity, seconds=8.0, limited=False, **service)
        late = kept.late_seconds / max(free.late_seconds, 1e-9)
        values = ((late, 0.5), (kept.unused, 0.15), (kept.failed, 0.0))
        return [
            Cell(name=title, measured=measured, limit=limit, unit=f"of {kept.summary}")
            for title, (measured, limit) in zip(names, values, strict=True)
        ]

    return Case(item=3, names=names, run=run)


def _runs() -> Case:
    names = tuple(
        f"requests a sample at run_length {RUN_LENGTH} over run_length 1, rows of about {count} samples"
        for count in IN_RUNS
    )

    def run(context: Context) -> list[Cell]:
        found = context.run_here(requests_in_runs, run_length=RUN_LENGTH, row_samples=tuple(IN_RUNS))
        return [
            Cell(name=name, measured=found[count], limit=limit, unit="of requests")
            for name, (count, limit) in zip(names, IN_RUNS.items(), strict=True)
        ]

    return Case(item=3, names=names, run=run)


_SMALL: dict[str, tuple[int, Callable[[], dict[str, float]], dict[str, float]]] = {
    "expiring tokens": (
        1,
        expiring_tokens,
        # A host that stops a process between signing and sending may cost a few.
        {"lost": 0, "repeated": 0, "errors": 0, "requests with keys that had ended": 4, "fetches beyond one a life": 0},
    ),
    "refused tokens": (1, refused_tokens, {"lost": 0, "repeated": 0, "fetches beyond one": 0}),
    "connections": (2, connections_used, {"connections": 4, "lost": 0, "repeated": 0}),
    "fork": (1, forked_readers, {"lost": 0, "repeated": 0, "other bytes": 0, "requests beyond one a sample": 0}),
    "stopped reader": (2, left_behind, {"bytes of noise": 0, "connections left": 0, "processes left": 0}),
    "secrets": (1, shown_secrets, {"places that show a secret": 0, "errors that did not come": 0}),
    "killed readers": (3, killed_readers, {"longest wait": 2.0, "share of the rate lost": 0}),
    "storm": (2, storm, {"requests": 60, "most in a tenth of a second": 8}),
}
_NUMBERS = {"expiring tokens": 8, "refused tokens": 8, "connections": 11}
"""Of those whose samples are counted."""
_TITLES = {
    "expiring tokens": "case 8, 8 processes whose tokens end every 3 s",
    "refused tokens": "case 8, 8 processes whose token is refused at once",
    "connections": "case 11, 12 threads with 4 connections, every 12th answer an error",
    "fork": "a store that was used, then forked 8 times",
    "stopped reader": "case 12, readers that stop in the middle of a body",
    "secrets": "secrets in errors, logs, repr and pickles",
    "killed readers": "readers killed 20 times in the limiter",
    "storm": "case 1, 16 readers refused for 6 s, whatever they ask",
}


def _small(key: str, item: int, measure: Callable[[], dict[str, float]], limits: dict[str, float]) -> Case:
    names = {what: f"{_TITLES[key]}: {what}" for what in limits}

    def run(context: Context) -> list[Cell]:
        found = context.run_here(measure)
        return [
            Cell(name=names[what], measured=found[what], limit=limit, unit="s" if "wait" in what else "count")
            for what, limit in limits.items()
        ]

    fault = None
    if "lost" in limits and "repeated" in limits:
        numbers = (_NUMBERS[key],) if key in _NUMBERS else ()
        what = _TITLES[key].partition(", ")[2] if numbers else _TITLES[key]
        outcome = "the same samples"
        fault = Injected(numbers=numbers, what=what, outcome=outcome, lost=names["lost"], repeated=names["repeated"])
    return Case(item=item, names=tuple(names.values()), run=run, fault=fault)
