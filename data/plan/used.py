"""How far the sources of a run are used: what one segment of the plan leaves to the next.

A source has one endless sequence of samples, an epoch after the other (order.py), which the seed and the source's name
decide and nothing else. Windows take places of it in turn. When a segment ends within a window, the places whose
samples were not trained on are kept, and are the first that the next segment takes. So whatever changes, and however
often, an epoch has every sample once; and a source that is left out for a while goes on where it was.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.types import Int64


def _none() -> Int64:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """What windows have taken of one source's endless sequence."""

    count: int = 0
    """Places 0 .. count-1 were taken."""
    left: Int64 = field(default_factory=_none)
    """Those of them that no step has trained on, ascending."""

    def places(self, start: int, count: int) -> Int64:
        """The places that come `start`-th and so on from here, int64 (count,): first those that are left."""
        held = self.left[start : start + count]
        first = self.count + max(0, start - len(self.left))
        return np.concatenate((held, np.arange(first, first + count - len(held), dtype=np.int64)))

    def after(self, taken: int, unused: Int64) -> "Drawn":
        """When `taken` more places were taken and all of these but `unused` were trained on."""
        more = max(0, taken - len(self.left))
        return Drawn(count=self.count + more, left=np.concatenate((np.sort(unused), self.left[taken:])))

    def to_dict(self) -> dict[str, Any]:
        """For the checkpoint: `left` takes a bit for each place from the first that is left on, at most."""
        if not len(self.left):
            return {"count": self.count}
        first = int(self.left[0])
        bits = np.zeros(int(self.left[-1]) - first + 1, dtype=bool)
        bits[self.left - first] = True
        packed = base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()
        return {"count": self.count, "left_from": first, "left": packed}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Drawn":
        """Inverse of `to_dict`."""
        if "left" not in saved:
            return cls(count=int(saved["count"]))
        bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(saved["left"])), dtype=np.uint8))
        return cls(count=int(saved["count"]), left=np.flatnonzero(bits) + int(saved["left_from"]))


Used = Mapping[str, Drawn]
"""By the name of the source; one that is not there has not been touched."""


def used_to_dict(used: Used) -> dict[str, Any]:
    return {name: drawn.to_dict() for name, drawn in sorted(used.items())}


def used_from_dict(saved: Mapping[str, Any]) -> Used:
    """Inverse of `used_to_dict`."""
    return {name: Drawn.from_dict(drawn) for name, drawn in saved.items()}


def used_digest(used: Used) -> str:
    """blake2b-128 of what a segment begins with."""
    text = json.dumps(used_to_dict(used), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def window_places(drawn: Sequence[Drawn], shares: Sequence[int], window: int) -> Int64:
    """The places that a window takes, source by source, int64 (sum of shares,)."""
    taken = [each.places(window * share, share) for each, share in zip(drawn, shares, strict=True)]
    return np.concatenate(taken)


def drawn_after(drawn: Sequence[Drawn], shares: Sequence[int], window: int, unused: Int64 | None) -> list[Drawn]:
    """Each source's `Drawn` where windows before `window` are used up, and that window but for `unused`.

    Args:
        unused: what of `window_places` was not trained on, as numbers into it; None if the window was not begun.
    """
    if unused is None:
        return [each.after(window * share, _none()) for each, share in zip(drawn, shares, strict=True)]
    places = window_places(drawn, shares, window)
    ends = np.cumsum(shares)
    return [
        each.after((window + 1) * share, places[unused[(unused >= end - share) & (unused < end)]])
        for each, share, end in zip(drawn, shares, ends, strict=True)
    ]
