"""The table of faults: what is injected, how it ends, and the samples that it costs, all of it measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.prove.case import Case
from tests.prove.rows_out import Row

HEAD = ("case", "injected", "outcome", "samples lost", "samples repeated", "ok")


def fault_table(cases: Mapping[str, Case], rows: Mapping[str, Sequence[Row]]) -> str:
    """Markdown with a line for each case that injects a fault, those that users reported first, by their number.

    Args:
        cases: by key.
        rows: of the cases that ran, by key; the line of one whose rows lack a value says so.
    """
    lines = [(case.fault.numbers or (99,), _line(case, rows.get(key, ()))) for key, case in cases.items() if case.fault]
    return "\n".join((_cells(HEAD), "|---|---|---|---:|---:|---|", *(line for _, line in sorted(lines)), ""))


def write_fault_table(path: Path, cases: Mapping[str, Case], rows: Mapping[str, Sequence[Row]]) -> None:
    """Write it where a proof's results lie, and print it; nothing if no case injects a fault."""
    if any(case.fault for case in cases.values()):
        table = fault_table(cases, rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(table)
        print(f"\n{table}", flush=True)


def _line(case: Case, rows: Sequence[Row]) -> str:
    fault = case.fault
    assert fault is not None
    found = {row.case: row.measured for row in rows}
    counts = [found.get(name) for name in (fault.lost, fault.repeated)]
    shown = ["missing" if count is None else f"{count:g}" for count in counts]
    numbers = ", ".join(map(str, fault.numbers)) or "-"
    # The outcome is what is due; whether it came is for all rows of the case to say.
    verdict = "ok" if rows and all(row.ok for row in rows) else "FAILS"
    return _cells((numbers, fault.what, fault.outcome, *shown, verdict))


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
