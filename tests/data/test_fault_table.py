"""The proof's table of faults: every user's case has a line or a named test, and lines show what was measured."""

import ast
from pathlib import Path

import pytest

from tests.prove.case import Case, Injected
from tests.prove.data import all_cases
from tests.prove.fault_table import fault_table
from tests.prove.rows_out import ROOT, Row
from tests.prove.user_cases import USER_CASES


def test_every_line_of_the_table_counts_by_rows_that_its_case_has() -> None:
    for key, case in all_cases().items():
        if case.fault is not None:
            assert {case.fault.lost, case.fault.repeated} <= set(case.names), key
            assert case.fault.lost != case.fault.repeated
            assert set(case.fault.numbers) <= USER_CASES.keys()


@pytest.mark.parametrize("number", range(1, 41))
def test_a_users_case_has_a_line_in_the_table_or_names_what_covers_it(number: int) -> None:
    cases = all_cases()
    lines = [key for key, case in cases.items() if case.fault is not None and number in case.fault.numbers]
    covered = USER_CASES[number].covered
    assert bool(lines) != bool(covered), f"case {number}: lines {lines}, and named as covering it {covered}"
    for name in covered:
        path, separator, test = name.partition("::")
        assert test in _tests(ROOT / path) if separator else name in cases, name


def test_a_line_shows_what_was_measured_and_a_missing_value_is_no_zero() -> None:
    fault = Injected(numbers=(3,), what="cut", outcome="the same samples", lost="lost", repeated="repeated")
    case = Case(item=2, names=("lost", "repeated"), run=lambda _: [], fault=fault)
    rows = [_row("lost", 2.0, ok=False), _row("repeated", 0.0, ok=True)]
    assert fault_table({"a": case}, {"a": rows}).splitlines()[2:] == ["| 3 | cut | the same samples | 2 | 0 | FAILS |"]
    assert "| missing | 0 | FAILS |" in fault_table({"a": case}, {"a": [_row("lost", None, ok=False), rows[1]]})
    assert "| missing | missing | FAILS |" in fault_table({"a": case}, {})


def _row(name: str, measured: float | None, ok: bool) -> Row:
    return Row(item=2, case=name, measured=measured, limit=0.0, unit="", seconds=0.0, ok=ok)


def _tests(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
