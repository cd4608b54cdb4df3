"""The worked example of docs/model.md, run as it stands there."""

import doctest
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "model.md"


def test_every_number_of_the_worked_example() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert tried > 40 and failed == 0
