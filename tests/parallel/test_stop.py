"""Requests to end a run, with threads as ranks: no step is updated on some ranks and dropped on others, whenever it
comes. Whole jobs: tests/train/test_signals.py."""

import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from parallel import stop as stop_module
from parallel.stop import Gathered, Stop


@dataclass
class Job:
    """Ranks that agree by a barrier, as a reduction does, and each count their updates."""

    size: int
    steps: int = 6
    learns: Callable[[int], bool] = lambda step: True
    pause: Callable[[int, int], float] = lambda rank, step: 0.0
    """(rank, step) -> seconds before the agreement."""
    grace: float = 30.0
    updates: list[int] = field(default_factory=list)
    """Of the last step by which each rank's weights were changed."""
    ended: list[str | None] = field(default_factory=list)
    saved: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(step of the state, last update) as each rank's thread found it."""

    def __post_init__(self) -> None:
        store = self.store = dist.HashStore()
        self.updates, self.ended = [0] * self.size, [None] * self.size
        self.over = threading.Event()
        self._flags = [False] * self.size
        self._barrier = threading.Barrier(self.size)
        self.stops = [Stop(rank, self.size, lambda: store, self._hears(rank)) for rank in range(self.size)]
        self.threads = [threading.Thread(target=self._train, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in self.threads:
            thread.start()

    def _hears(self, rank: int) -> Callable[[str], None]:
        def hear(text: str) -> None:
            self.ended[rank] = text

        return hear

    def _rescue(self, rank: int) -> Callable[[Any, Gathered], str]:
        def rescue(state: int, gathered: Gathered) -> str:
            self.saved[rank] = (state, self.updates[rank])
            time.sleep(0.2)
            assert self.saved[rank] == (state, self.updates[rank]), "it changed while it was saved"
            return f"saved {gathered(state)[0]}"

        return rescue

    def _train(self, rank: int) -> None:
        stop = self.stops[rank]
        with stop.serving(self.grace, self._rescue(rank)):
            step = 0
            while step < self.steps and not stop.agreed:
                step += 1
                stop.begin(step, step - 1)
                self.over.wait(self.pause(rank, step))
                if self.learns(step):
                    self._flags[rank] = stop.asks()
                    self._barrier.wait()
                    asked = any(self._flags)
                    self._barrier.wait()
                    stop.admit(asked)
                    self.updates[rank] = step
                if step == self.steps:
                    stop.begin(step + 1, step)
                    stop.settle()
                stop.go_on()
        self.ended[rank] = f"reached {step}"

    def wait(self, seconds: float = 120.0) -> list[str | None]:
        deadline = time.monotonic() + seconds
        while None in self.ended and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.ended


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_module, "_POLL_SECONDS", 0.01)


def ask(job: Job, rank: int, others_after: float = 0.05) -> None:
    """A signal to one rank, of which the others hear through the store a little later."""
    assert job.stops[rank].signalled() == "first"
    hear(job, rank, others_after)


def hear(job: Job, rank: int, others_after: float) -> None:
    job.stops[rank].hear()
    time.sleep(others_after)
    for other in job.stops:
        other.hear()


def test_without_a_request_every_step_is_made() -> None:
    assert Job(3).wait() == ["reached 6"] * 3


def test_all_ranks_end_after_the_step_in_which_one_was_asked() -> None:
    asked = threading.Event()

    def pause(rank: int, step: int) -> float:
        if step == 3:
            asked.wait(60)
        return 0.0

    job = Job(3, pause=pause)
    while job.updates[1] < 2:
        time.sleep(0.005)
    ask(job, 1)
    asked.set()
    assert job.wait() == ["reached 3"] * 3 and job.updates == [3] * 3 and not job.saved


def test_a_step_that_takes_longer_than_the_grace_is_dropped_on_all_ranks() -> None:
    job = Job(3, pause=lambda rank, step: 60.0 if (rank, step) == (2, 4) else 0.0, grace=1.0)
    while job.updates[2] < 3:
        time.sleep(0.005)
    ask(job, 0)
    assert job.wait() == ["saved 3"] * 3
    assert job.saved == dict.fromkeys(range(3), (3, 3)) and job.updates == [3] * 3
    job.over.set()  # the slow rank comes on at last, and finds the gate closed
    time.sleep(0.3)
    assert job.updates == [3] * 3 and all(thread.is_alive() for thread in job.threads)
    assert all(stop.dropped for stop in job.stops)


def test_a_step_that_is_over_as_it_is_dropped_is_dropped_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Event()

    def until_dropped(rank: int, step: int) -> float:
        made.wait(60)  # until there is a job to look at
        while (rank, step) == (1, 4) and not job.store.check(["stop/gate"]):
            time.sleep(0.001)
        return 0.0

    job = Job(2, pause=until_dropped, grace=2.0)
    made.set()
    while job.updates[1] < 3:
        time.sleep(0.005)
    monkeypatch.setattr(stop_module, "_POLL_SECONDS", 0.5)  # one rank knows long before the other
    ask(job, 0)
    assert job.wait() == ["saved 3"] * 2
    assert job.saved == {0: (3, 3), 1: (3, 3)} and job.updates == [3, 3]


def test_the_time_that_a_save_takes_is_kept_for_it() -> None:
    # Half a second is left for the step; where nothing is known of the save, half of the grace would be.
    job = Job(1, pause=lambda rank, step: 600.0 if step == 2 else 0.0, grace=600.0)
    job.stops[0].save_seconds = 399.0
    while job.updates[0] < 1:
        time.sleep(0.005)
    ask(job, 0)
    assert job.wait() == ["saved 1"]


def test_a_rank_that_cannot_finish_the_step_before_is_named() -> None:
    began, replaced = threading.Event(), threading.Event()

    def pause(rank: int, step: int) -> float:
        if step == 1:
            if rank == 1:
                began.set()
            replaced.wait(60)
        return 60.0 if step == 2 else 0.0

    job = Job(2, pause=pause, grace=0.5)
    assert began.wait(60)
    job.stops[1].begin = lambda step, state: time.sleep(60.0 if step == 2 else 0.0)  # type: ignore[method-assign]
    replaced.set()
    stop_module_patience = stop_module._LEAST_PATIENCE
    try:
        stop_module._LEAST_PATIENCE = 4.0
        while job.updates[0] < 1:
            time.sleep(0.005)
        ask(job, 0)
        told = job.wait()
        assert all("rank 1 did not come to the end of step 1" in (text or "") for text in told), told
    finally:
        stop_module._LEAST_PATIENCE = stop_module_patience


@pytest.mark.parametrize("seed", range(12))
def test_no_step_is_made_on_some_ranks_and_dropped_on_others(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.choice((2, 3, 4))
    slow = chance.randrange(1, 6)
    waits = {(rank, step): chance.random() * 0.05 for rank in range(size) for step in range(1, 7)}
    waits[chance.randrange(size), slow] += 0.4
    skipped = {step for step in range(1, 7) if chance.random() < 0.25}
    job = Job(
        size,
        learns=lambda step: step not in skipped,
        pause=lambda rank, step: waits[rank, step],
        grace=chance.choice((0.2, 0.5, 0.9)),
    )
    time.sleep(chance.random() * 0.5)
    asked = chance.randrange(size)
    if job.stops[asked].signalled() == "first":  # else its job is over
        hear(job, asked, others_after=chance.random() * 0.1)
    texts = job.wait()
    assert len(set(texts)) == 1 and texts[0] is not None, texts
    assert len(set(job.updates)) == 1, job.updates
    for state, updated in job.saved.values():
        assert updated <= state and skipped >= set(range(updated + 1, state + 1))


def test_a_rank_that_is_told_late_of_what_all_agreed_to_has_no_more_time_than_the_others() -> None:
    """It is what uploads are given, and whether a last save that failed is a failure."""
    store, barrier, flags = dist.HashStore(), threading.Barrier(2), [False, False]
    stops = [Stop(rank, 2, lambda: store, lambda text: None) for rank in range(2)]
    left: dict[int, float] = {}

    def train(rank: int) -> None:
        stop = stops[rank]
        with stop.serving(25.0, lambda state, gathered: ""):
            stop.begin(1, 0)
            if rank == 1:
                stop.hear()
            flags[rank] = stop.asks()
            barrier.wait(30)
            stop.admit(any(flags))
            left[rank] = stop.seconds_left if stop.agreed and stop.heard else math.inf

    threads = [threading.Thread(target=train, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(left) == 2 and all(seconds <= 25.0 for seconds in left.values()), left


def test_no_rank_goes_on_alone_from_the_save_before_where_it_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `Trainer.save` does it. One rank knows first what became of that save, and is in a collective when the other
    is held. The gate is closed then, and the state of both is there."""
    store, barrier, flags = dist.HashStore(), threading.Barrier(2), [False, False]
    told, passed, ended = threading.Event(), list[int](), dict[int, str]()
    everybody = threading.Event()

    def ends(rank: int) -> Callable[[str], None]:
        def end(text: str) -> None:
            ended[rank] = text
            if len(ended) == 2:
                everybody.set()

        return end

    stops = [Stop(rank, 2, lambda: store, ends(rank)) for rank in range(2)]
    monkeypatch.setattr(stop_module, "_LEAST_PATIENCE", 2.0)

    def train(rank: int) -> None:
        stop = stops[rank]
        with stop.serving(1.0, lambda state, gathered: f"saved {gathered(state)}"):
            for step in (1, 2):  # the agreement of the step, and that of the save after it
                stop.begin(step, step - 1)
                if (rank, step) == (0, 2):
                    told.wait(60)
                flags[rank] = stop.asks()
                barrier.wait(60)
                asked = any(flags)
                barrier.wait(60)
                stop.admit(asked)
            passed.append(rank)

    for rank in range(2):
        threading.Thread(target=train, args=(rank,), daemon=True).start()
    while any(stop._entered < 1 + stop._rank for stop in stops):
        time.sleep(0.005)
    for stop in stops:
        stop.hear()
    assert everybody.wait(60) and ended == {0: "saved [1, 1]", 1: "saved [1, 1]"}
    told.set()  # it hears at last, and is parked with the other
    time.sleep(0.2)
    assert not passed


def test_signals_of_one_request_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stop_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    stop = Stop(0, 1, dist.HashStore, print)
    assert stop.signalled() == "now" and not stop.requested  # before training
    with stop.serving(60.0, lambda state, gathered: ""):
        assert stop.signalled() == "first" and stop.requested
        now[0] += 0.5
        assert stop.signalled() == "same"
    now[0] += 1.0
    assert stop.signalled() == "same"  # handed on by torchrun, to a run that has ended in the meantime
    now[0] += 1.0
    assert stop.signalled() == "now"
