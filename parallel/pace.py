"""Which rank holds the others up, and at what: seconds of each rank's own work by phase, compared between ranks.

Ranks that wait for each other all take as long as the slowest, so what tells is work alone: reading on ranks that read,
forward and backward without the waits for other pipeline stages, AdamW, copying for a save. Of a reduction nothing is
one rank's own; there one group of ranks may take longer than the others. Sums travel with the watch's signs of life
(parallel/peers.py), so no step pays for them.
"""

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from parallel.grid import Grid

WORK = ("data", "forward", "backward", "reduce", "update", "save")
LEAST_SHARE = 0.1
"""Of a step, that a rank must take longer than its like before it is named. Ours."""
LEAST_STEPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What a rank has spent since it began."""

    steps: int = 0
    clock: float = 0.0
    """When the last of them ended; differences alone mean something."""
    seconds: tuple[float, ...] = (0.0,) * len(WORK)
    """Of its own work, in the order of WORK."""
    host: str = "?"


NO_PACE = Pace()


class Spent:
    """Adds up this rank's; its main thread writes, its watch reads."""

    def __init__(self) -> None:
        self._now = dict.fromkeys(WORK, 0.0)
        self.pace = Pace(host=socket.gethostname())

    def add(self, work: str, seconds: float) -> None:
        """Count work of the step under way."""
        self._now[work] += seconds

    def end_step(self) -> None:
        """A step is over; what was added counts from here on."""
        seconds = tuple(self._now[work] for work in WORK)
        self.pace = replace(self.pace, steps=self.pace.steps + 1, clock=time.monotonic(), seconds=seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Straggler:
    """Ranks that take longer at something than their like do."""

    ranks: tuple[int, ...]
    """One, or all of a group whose members wait for each other at it."""
    work: str
    seconds: float
    """A step."""
    others: float
    """What their like take."""
    steps: int
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        named = f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))}"
        return (
            f"{named} held the others up in {self.work}: {self.seconds:.2f} s a step, where others take "
            f"{self.others:.2f} s (mean of {self.steps} steps), on {', '.join(self.hosts)}"
        )


class Comparison:
    """Who held the others up since it was asked last."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._before: Mapping[int, Pace] = {}

    def slow(self, now: Mapping[int, Pace]) -> list[Straggler]:
        """The worst first. What was heard of too few steps is looked at again next time."""
        steps = [pace.steps - self._before.get(rank, pace).steps for rank, pace in now.items()]
        if self._before and (not steps or min(steps) < LEAST_STEPS):
            return []
        before, self._before = self._before, now
        return stragglers(self._grid, before, now) if before else []


def stragglers(grid: Grid, before: Mapping[int, Pace], now: Mapping[int, Pace]) -> list[Straggler]:
    """Who was slow between two looks, the worst first; nothing as long as too little has happened."""
    steps = {rank: now[rank].steps - before[rank].steps for rank in now if rank in before}
    if not steps or min(steps.values()) < LEAST_STEPS:
        return []
    whole = statistics.median((now[rank].clock - before[rank].clock) / count for rank, count in steps.items())
    found = []
    for place, work in enumerate(WORK):
        each = {rank: (now[rank].seconds[place] - before[rank].seconds[place]) / count for rank, count in steps.items()}
        for like in _alike(grid, work, sorted(each)):
            usual, most = statistics.median_low([each[rank] for rank in like]), max(each[rank] for rank in like)
            if most - usual > LEAST_SHARE * whole:
                slow = tuple(rank for rank in like if each[rank] > (usual + most) / 2)
                taken = statistics.mean(each[rank] for rank in slow)
                hosts = tuple(dict.fromkeys(now[rank].host for rank in slow))
                of = min(steps.values())
                found.append(Straggler(ranks=slow, work=work, seconds=taken, others=usual, steps=of, hosts=hosts))
    return sorted(found, key=lambda one: one.others - one.seconds)


def _alike(grid: Grid, work: str, ranks: Sequence[int]) -> list[list[int]]:
    """Ranks that should take as long as each other: pipeline stages hold other layers, and few ranks read."""
    if work == "data":
        return [[rank for rank in ranks if grid.coordinates(rank)[1:] == (0, 0)]]
    if work == "reduce":
        return [list(ranks)]
    stages = sorted({grid.coordinates(rank)[2] for rank in ranks})
    return [[rank for rank in ranks if grid.coordinates(rank)[2] == stage] for stage in stages]
