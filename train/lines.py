"""Files of JSON lines that a full disk does not end a run for: what cannot be written now waits in memory."""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)
MOST_BYTES = 64 << 20
"""That wait; beyond it the newest lines are dropped."""


def record_of(line: str) -> dict[str, Any] | None:
    """What a line says; None for one that is no JSON object, as a host leaves that is lost while it writes."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def plain(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Lines:
    """A file that lines are added to, as far as the disk takes them."""

    def __init__(self, path: Path, kept: Iterable[str] | None = None) -> None:
        """`kept` are the lines that it begins with, in the place of what was there. Raises OSError. None: what was
        there stays, and there is no file before the first line."""
        if kept is not None:
            part = path.with_name(path.name + ".part")
            part.write_text("".join(kept), encoding="utf-8")
            part.replace(path)  # in one step: a disk that is full now must not cost what was there
        self._path = path
        self._file: BinaryIO | None = None
        self._waiting = bytearray()
        self._is_told = False

    def write(self, line: str) -> None:
        """Add a line that ends in a line feed."""
        if len(self._waiting) < MOST_BYTES:
            self._waiting += line.encode()
        try:
            if self._file is None and self._waiting:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("ab", buffering=0)
            while self._waiting:
                assert self._file is not None
                del self._waiting[: os.write(self._file.fileno(), self._waiting)]
            self._is_told = False
        except OSError as error:
            if not self._is_told:
                log.warning("%s cannot be written, lines wait in memory: %s", self._path, error)
            self._is_told = True

    def close(self) -> None:
        """Write what waits, if that is possible now; else say how much is lost."""
        self.write("")
        if self._waiting:
            log.warning("%s lacks its last %d bytes", self._path, len(self._waiting))
        if self._file is not None:
            self._file.close()
