"""Defects for tests/prove/data_loader.py. Each breaks this process and returns how to mend it."""

import threading
import time
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


def share_forgotten() -> Mend:
    """Only bad samples in a row are counted."""
    from data.loading.loader import Loader

    def make(count_bad: Any) -> Any:
        def planted(self: Any, rows: Any, records: Any) -> None:
            self._bad = 0
            count_bad(self, rows, records)

        return planted

    return replace_name(Loader, "_count_bad", make)


def row_ends_with_the_step() -> Mend:
    """Bad samples in a row are counted from the start of each step."""
    from data.loading.loader import Loader

    def make(count_bad: Any) -> Any:
        def planted(self: Any, rows: Any, records: Any) -> None:
            self._bad_in_row = 0
            count_bad(self, rows, records)

        return planted

    return replace_name(Loader, "_count_bad", make)


def share_of_few() -> Mend:
    """A share is taken of however few samples there were."""
    from data.loading import loader

    return replace_name(loader, "_FEW_SAMPLES", lambda _: 0)


def descriptors_kept() -> Mend:
    """The memory file of every 64th row stays open after it was read: fewer than a process may have open."""
    import itertools
    import os

    from data.loading import pool

    rows = itertools.count()

    def make(receive: Any) -> Any:
        def planted(sock: Any) -> Any:
            received = receive(sock)
            if received is not None and received[1] is not None and next(rows) % 64 == 0:
                os.open(os.devnull, os.O_RDONLY)
            return received

        return planted

    return replace_name(pool, "receive", make)


def workers_outlive() -> Mend:
    """Workers do not look whether their trainer is there, and do not end by themselves."""
    from data import child
    from data.loading import pool

    def make_start(start: Any) -> Any:
        planted = "tests.prove.planted", "loader_workers_outlive", "-m"
        return lambda module, *arguments, **how: start(*planted, module, *arguments, **how)

    def make_leave(leave: Any) -> Any:
        return lambda: threading.Thread(target=time.sleep, args=(60.0,), daemon=False).start()

    mends = replace_name(pool, "start_child", make_start), replace_name(child, "leave_with_parent", make_leave)
    return lambda: [mend() for mend in mends] and None


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "loader_rows_as_they_come": (rows_as_they_come, ("loader/killed", "loader/layouts")),
    "loader_descriptors_kept": (descriptors_kept, ("loader/memory",)),
    "loader_rows_kept": (rows_kept, ("loader/memory",)),
    "loader_share_forgotten": (share_forgotten, ("loader/limits",)),
    "loader_row_ends_with_the_step": (row_ends_with_the_step, ("loader/limits",)),
    "loader_workers_outlive": (workers_outlive, ("loader/left",)),
    "loader_share_of_few": (share_of_few, ("loader/limits",)),
}
