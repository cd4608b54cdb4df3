"""What is known of clips that a decoder cannot decode, so that no epoch and no rank waits for it again."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a clip had before it was given up; a verdict holds as long as it would have no more today."""

    seconds: float
    memory_bytes: int


class Verdicts:
    """(what was asked of which clip, decoder) -> reason. Shared through `folder` if there is one, else the process's.

    A file a verdict, a few hundred bytes, written beside and renamed. They are as few as undecodable clips are, so
    nothing removes them; a folder that cannot be written costs the sharing, never the run.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[str, tuple[str, Limits]] = {}

    def reason(self, request: str, decoder: str, limits: Limits) -> str | None:
        """Why `decoder` is not to be asked; None if it is."""
        key = _key(request, decoder)
        if key not in self._known and self._folder is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
                found = json.loads((self._folder / f"{key}.json").read_text())
                if found["key"] == key:
                    self._known[key] = (str(found["reason"]), Limits(**found["limits"]))
        if key not in self._known:
            return None
        reason, then = self._known[key]
        if limits.seconds > then.seconds or limits.memory_bytes > then.memory_bytes:
            return None
        return reason

    def add(self, request: str, decoder: str, reason: str, limits: Limits, shared: bool) -> None:
        """Remember; not `shared` is what may have come from the host and not from the clip."""
        key = _key(request, decoder)
        self._known[key] = (reason, limits)
        if self._folder is None or not shared:
            return
        text = json.dumps({"key": key, "decoder": decoder, "reason": reason, "limits": asdict(limits)})
        part = self._folder / f".{key}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text(text)
            part.replace(self._folder / f"{key}.json")
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()


def _key(request: str, decoder: str) -> str:
    return hashlib.blake2b(f"{request} {decoder}".encode(), digest_size=16).hexdigest()
