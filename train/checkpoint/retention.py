"""Which checkpoints stay: one policy for a run's own saves, its uploads, and `triptych checkpoint prune`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Found = Sequence[tuple[str, int]]
"""(name of the folder, step) of finished checkpoints, newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What is kept; one of the reasons is enough. The newest always stays."""

    last: int = 1
    """So many of the newest."""
    every: int | None = None
    """Those of steps that it divides, for ever."""
    names: frozenset[str] = frozenset()
    """These, whatever they are."""
    lowest: Mapping[str, float] = field(default_factory=dict)
    """What each is judged by, where that is known; lower is better."""
    best: int = 0
    """So many of the lowest."""

    def kept(self, found: Found) -> set[str]:
        """Names of those that stay."""
        judged = [name for name, _ in found if name in self.lowest]
        return {
            *(name for name, _ in found[: max(1, self.last)]),
            *(name for name, step in found if self.every is not None and step % self.every == 0),
            *(name for name, _ in found if name in self.names),
            *sorted(judged, key=self.lowest.__getitem__)[: self.best],
        }

    def superseded(self, found: Found, newest: str) -> list[str]:
        """Names of those that go, now that `newest` was finished.

        Those of a later step stay: they were damaged, or left behind on purpose, when the run went on from an earlier
        one. So `newest` is the first of those that are looked at, whatever else is there.
        """
        steps = dict(found)
        older = [(name, step) for name, step in found if name != newest and step <= steps[newest]]
        kept = self.kept([(newest, steps[newest]), *older])
        return [name for name, _ in older if name not in kept]
