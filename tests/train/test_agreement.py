"""What rank 0 does alone while the others wait: bounded, in no collective, and ended alike. Threads are ranks here."""

import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from train import agreement
from train.agreement import PATIENCE, slowly_on_first_rank
from train.errors import CheckpointError

LIMIT = 100.0


class World:
    """Ranks that have a store and a clock of their own making, and no collective but the first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stands_at: float = math.inf) -> None:
        """The clock goes on with each look of a rank that waits, up to `stands_at`."""
        self.now = 0.0
        store, here = dist.HashStore(), threading.local()
        self._here = here
        self.ended: dict[int, str] = {}

        def sleep(_: float) -> None:
            time.sleep(0.001)
            self.now = min(self.now + 1.0, stands_at)

        monkeypatch.setattr(agreement, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=sleep))
        monkeypatch.setattr(agreement, "on_first_rank", lambda *_: ("slowly/1", LIMIT))
        monkeypatch.setattr(agreement.distributed_c10d, "_get_default_store", lambda: store)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: here.rank)
        monkeypatch.setattr(dist, "all_gather_object", None)

    def start(self, action: Callable[[Callable[[], None]], object]) -> list[threading.Thread]:
        def run(rank: int) -> None:
            self._here.rank = rank
            try:
                slowly_on_first_rank("fetching", action, LIMIT / (1 + 99 * rank))  # rank 0's counts
                self.ended[rank] = "well"
            except CheckpointError as error:
                self.ended[rank] = str(error)

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(3)]
        for thread in threads:
            thread.start()
        return threads


def joined(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(60)
    return not any(thread.is_alive() for thread in threads)


def test_all_hear_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    assert joined(world.start(lambda check: check())) and set(world.ended.values()) == {"well"}


def test_what_fails_on_rank_0_fails_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def action(check: Callable[[], None]) -> None:
        raise ValueError("no room")

    world = World(monkeypatch)
    assert joined(world.start(action))
    assert set(world.ended.values()) == {"fetching failed on rank 0: ValueError: no room"}


def test_past_its_limit_rank_0_is_told_to_stop_and_all_end_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rank 0 may get no core while the others' looks would bring the clock past all patience.
    world = World(monkeypatch, stands_at=LIMIT + PATIENCE / 2)

    def action(check: Callable[[], None]) -> None:
        while True:
            check()
            time.sleep(0.001)

    assert joined(world.start(action)) and len(world.ended) == 3 and LIMIT < world.now < LIMIT + PATIENCE
    assert set(world.ended.values()) == {
        "fetching failed on rank 0: TimeoutError: rank 0 was not done with fetching in 100 s"
    }


def test_a_rank_0_that_hangs_holds_nobody_up_and_ends_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    go_on = threading.Event()
    threads = world.start(lambda check: go_on.wait(120))
    assert joined(threads[1:]) and threads[0].is_alive() and world.now < LIMIT + PATIENCE + 10
    go_on.set()
    assert joined(threads)
    assert set(world.ended.values()) == {
        "fetching failed on rank 0: TimeoutError: rank 0 was not done with fetching in 100 s, and does not answer"
    }


def test_one_process_alone_has_no_limit() -> None:
    done: list[int] = []
    slowly_on_first_rank("fetching", lambda check: (check(), done.append(1)), -1.0)
    assert done
