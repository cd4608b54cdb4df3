"""What a proof runs, and the values that come of it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.prove.context import Context


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value that must not be over its limit."""

    name: str
    measured: float
    limit: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Injected:
    """A fault that a case injects, for the table of faults."""

    numbers: tuple[int, ...]
    """In tests/prove/user_cases.py; empty for a fault that no user reported."""
    what: str
    outcome: str
    lost: str
    """Name of the row that counts lost samples."""
    repeated: str


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something that runs once and gives rows."""

    item: int
    names: tuple[str, ...]
    """Of the rows, known beforehand so that none can be missing unseen."""
    run: Callable[[Context], list[Cell]]
    fault: Injected | None = None
