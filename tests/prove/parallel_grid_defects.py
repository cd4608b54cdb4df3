"""Defects for tests/prove/parallel_grid.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable

from tests.prove.planting import Mend

PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {}
