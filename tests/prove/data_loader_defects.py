"""Defects for tests/prove/data_loader.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

from tests.prove.planting import Mend, replace_name


def rows_as_they_come() -> Mend:
    """A step's rows are in the order in which workers were done with them."""
    from data.loading import loader

    def make(joined: Any) -> Any:
        def planted(step: Any) -> Any:
            places = list(step.results)
            step.results = dict(enumerate(step.results[place] for place in reversed(places)))
            return joined(step)

        return planted

    return replace_name(loader, "_joined", make)


def rows_kept() -> Mend:
    """Rows are remembered after they were trained on."""
    from data.loading.loader import Loader

    kept: list[Any] = []

    def make(next_step: Any) -> Any:
        def planted(self: Any) -> Any:
            step, rows = next_step(self)
            kept.extend(row.patches.copy() for row in rows)
            return step, rows

        return planted

    return replace_name(Loader, "next_step", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "loader_rows_as_they_come": (rows_as_they_come, ("loader/killed",)),
    "loader_rows_kept": (rows_kept, ("loader/memory",)),
}
