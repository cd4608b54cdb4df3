"""What ranks tell each other about life and trouble, through the job's key-value store."""

import os
import pickle
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parallel.pace import NO_PACE, Pace
from parallel.place import Neighbour, Place, State
from parallel.verdict import Answer, Lost, LostState, Post


def own_store(timeout_seconds: float) -> dist.Store:
    """A connection to the job's store that one thread has to itself.

    torchrun's agent hosts the store, so it outlives every rank. A process started by hand has one of its own.
    """
    if "RANK" not in os.environ:
        return dist.HashStore()
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
    )
    # A job that torchrun restarts keeps its store, with all that was said before.
    return dist.PrefixStore(f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What the ranks are told once it is known who ended the job."""

    code: int
    """Exit code."""
    teller: int
    """The rank that has told all of it."""
    line: str
    """For the others to print; empty for nothing."""
    living: int
    """Ranks that get this."""
    lost: tuple[int, ...]
    """Ranks that do not, and may have to be killed."""
    folder: str = ""
    """Gets a file from each rank; empty for none."""


class Peers:
    """The other ranks as one rank sees them. Methods that talk raise torch's DistError once the store is gone."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, fd: int) -> None:
        """`fd` is that of this rank's shared board."""
        self.rank = rank
        self.done: set[int] = set()
        """Ranks that have ended well."""
        self._world_size = world_size
        self._store = store
        self._beats = 0
        self._heard: dict[int, tuple[int, Place]] = {}
        self._paces: dict[int, Pace] = {}
        self._since = dict.fromkeys(range(world_size), time.monotonic())
        self._known: set[str] = set()
        self._neighbours: dict[int, Neighbour] = {}
        self._write(f"hello/{rank}", (os.getpid(), fd))

    def beat(self, place: Place, done: bool = False, pace: Pace = NO_PACE) -> None:
        """Give a sign of life, with what the steps so far have taken."""
        self._beats += 1
        self._write(f"beat/{self.rank}", (self._beats, place, done, pace))

    def paces(self) -> dict[int, Pace]:
        """What was taken in last of each rank's steps. From any thread."""
        return dict(self._paces)

    def look(self, ranks: Collection[int]) -> None:
        """Take in signs of life."""
        for rank, (beats, place, done, pace) in self._read("beat", ranks).items():
            self._paces[rank] = pace
            if rank not in self._heard or self._heard[rank][0] != beats:
                self._heard[rank] = (beats, place)
                self._since[rank] = time.monotonic()
            if done:
                self.done.add(rank)

    def meet_neighbours(self) -> bool:
        """Map the boards of the ranks on this host, while they live; whether all have been met that can be."""
        first = self.rank - int(os.environ.get("LOCAL_RANK", "0"))
        here = range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        wanted = set(here) - {self.rank, *self._neighbours}
        if not wanted or not Path("/proc/self/stat").exists():
            return True
        self._neighbours |= {rank: Neighbour(*told) for rank, told in self._read("hello", wanted).items()}
        return wanted <= self._neighbours.keys()

    def neighbours(self) -> dict[int, tuple[State, Place | None]]:
        """State and place of each rank of this host that could be met."""
        return {rank: (each.state(), each.place()) for rank, each in self._neighbours.items()}

    def has_come(self, rank: int) -> bool:
        """Whether a rank has ever given a sign of life."""
        return rank == self.rank or rank in self._heard

    def silence(self, rank: int) -> float:
        """Seconds since a rank's last sign of life was taken in; since the start if there was none."""
        return time.monotonic() - self._since[rank]

    def lost(self, rank: int, answers: dict[int, Answer], patience: float) -> Lost | None:
        """What a rank without an answer is taken for: None while it may still give one.

        Its neighbours know at once when its process has gone; otherwise it is silence that tells.
        """
        seconds = self.silence(rank)
        known = [answer.neighbours[rank] for answer in answers.values() if rank in answer.neighbours]
        if rank in self._neighbours:
            known.append((self._neighbours[rank].state(), self._neighbours[rank].place()))
        places = [place for _, place in known if place is not None]
        place = self._heard[rank][1] if rank in self._heard else None
        states = [state for state, _ in known if state != "alive"]
        state: LostState = "silent" if self.has_come(rank) else "never came"
        if states:
            state = states[-1]
        elif seconds < patience:
            return None
        exact = bool(places)
        return Lost(rank=rank, state=state, seconds=seconds, place=places[-1] if exact else place, exact=exact)

    def kill(self, ranks: Collection[int]) -> None:
        """End neighbours that cannot end themselves."""
        for rank in set(ranks) & set(self._neighbours):
            self._neighbours[rank].kill()

    def post(self, trouble: Post) -> None:
        """Tell everyone of trouble."""
        number = self._store.add("posts", 1)
        self._write(f"post/{number}", trouble)

    def posts(self) -> list[Post]:
        """All trouble so far, in the order in which it reached the store."""
        count = self._store.add("posts", 0)
        return list(self._read("post", range(1, count + 1)).values()) if count else []

    def answer(self, answer: Answer) -> None:
        """Say what this rank knows of itself and its host."""
        self._write(f"answer/{self.rank}", answer)

    def answers(self) -> dict[int, Answer]:
        """What the ranks have answered so far."""
        return self._read("answer", range(self._world_size))

    def may_judge(self) -> bool:
        """True for one rank of the job, once."""
        return self._store.add("judges", 1) == 1

    def publish(self, order: Order) -> None:
        """Let everyone go."""
        self._write("order/0", order)

    def order(self) -> Order | None:
        """What was published."""
        return self._read("order", (0,)).get(0)

    def leave(self) -> None:
        """Say that this rank has read its orders."""
        self._store.add("left", 1)

    def left(self) -> int:
        """How many have."""
        return self._store.add("left", 0)

    def _write(self, key: str, value: object) -> None:
        self._store.set(key, pickle.dumps(value))  # type: ignore[arg-type]  # the stubs know of text alone

    def _read(self, kind: str, numbers: Collection[int]) -> dict[int, Any]:
        """The values there are. The store would wait for one that is not there."""
        keys = {number: f"{kind}/{number}" for number in numbers}
        new = [key for key in keys.values() if key not in self._known]
        if new and self._store.check(new):
            self._known.update(new)
        else:
            self._known.update(key for key in new if self._store.check([key]))
        there = [number for number, key in keys.items() if key in self._known]
        values = self._store.multi_get([keys[number] for number in there]) if there else []
        return {number: pickle.loads(value) for number, value in zip(there, values, strict=True)}
