"""Defects for tests/prove/data_whole.py. Each breaks a trainer or a data worker, and returns how to mend it."""

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

from tests.prove.planting import Mend, replace_name


def samples_not_checked() -> Mend:
    """A sample's bytes are trained on as they come."""
    from data.index import file

    return replace_name(file, "google_crc32c", lambda _: SimpleNamespace(value=lambda _: ANY))


def killed_row_is_the_last_again() -> Mend:
    """In the place of the row that a worker died over comes the one it had read before."""
    from data.loading.pool import Workers

    before: dict[Any, Any] = {}

    def make_give(give: Any) -> Any:
        def planted(self: Any, task: Any) -> None:
            before["last"], before["row"] = before.get("row", task.row), task.row
            give(self, task)

        return planted

    def make_replace(replace: Any) -> Any:
        def planted(self: Any, worker: Any, why: str = "") -> None:
            if worker.task is not None:
                worker.task = worker.task._replace(row=before["last"])
            replace(self, worker, why)

        return planted

    mends = replace_name(Workers, "give", make_give), replace_name(Workers, "_replace", make_replace)
    return lambda: [mend() for mend in mends] and None


def key_without_the_clip() -> Mend:
    """The decode cache's key says which frames, and not of which clip."""
    from data.visual.decode import ClipRequest

    def digest(self: Any) -> str:
        asked = (self.indices.tolist(), self.height, self.width)
        return hashlib.blake2b(repr(asked).encode(), digest_size=16).hexdigest()

    return replace_name(ClipRequest, "digest", lambda _: property(digest))


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "whole_samples_not_checked": (samples_not_checked, ("whole way",)),
    "whole_killed_row_is_the_last_again": (killed_row_is_the_last_again, ("whole way",)),
    "whole_key_without_the_clip": (key_without_the_clip, ("whole way",)),
}
