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
class Case:
    """Something that runs once and gives rows."""

    item: int
    names: tuple[str, ...]
    """Of the rows, known beforehand so that none can be missing unseen."""
    run: Callable[[Context], list[Cell]]
