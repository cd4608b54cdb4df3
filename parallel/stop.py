"""How a run that is asked to end does so: after a step that all ranks agree on, or, if that takes too long, with the
last finished one.

The request goes along in the reduction by which ranks agree that gradients are finite, so it costs no message of its
own. If the step does not come that far in time, its update is not made: weights and optimizer state are those of the
step before until every rank has been let through the gate that follows the agreement, so that a thread can save them,
whatever the main threads are stuck in.

    main thread of each rank                thread of each rank, once there is a request
    begin      state is that of step - 1    say which agreement is the first that this rank enters as asked
    asks       a flag into the reduction    wait; when the grace runs out, claim the gate for DROP
    admit      if any flag came out of it,
               claim the gate for UPDATE    UPDATE was first: leave all to the main threads
    thaw       state may change             DROP was first: hold the state, save it, end the job

The gate is one key of the job's store, and the first claim counts. An agreement is only passed without a claim if no
rank had its flag up when it entered it. So none from the lowest `first` on is, and before it all are, on every rank.
Agreements are counted, not steps: one with nothing to learn has none, and a save has one of its own, after it has
waited for the save before. Between that wait and the update of the step no rank may be left alone either.
"""

import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import torch.distributed as dist

TOGETHER_SECONDS = 2.0
"""Signals of one request: a scheduler signals every process of a job, and torchrun hands on the one that it got."""
UPDATE, DROP = "update", "drop"
_POLL_SECONDS = 0.1
_LEAST_PATIENCE = 10.0

Gathered = Callable[[Any], list[Any]]
"""Gives what is picklable to all ranks and returns what each gave, by rank; no main thread takes part."""
Rescue = Callable[[Any, Gathered], str]
"""Saves a state that `begin` was given, on every rank, and says what became of it."""


class Stop:
    """One rank's part. Outside of `serving` nothing is agreed, held or saved."""

    def __init__(
        self, rank: int, world_size: int, open_store: Callable[[], dist.Store], ended: Callable[[str], None]
    ) -> None:
        """Args:
        open_store: connects this rank to the job's store once more.
        ended: hears, in a thread, what became of a state that had to be saved without the main threads.
        """
        self._rank, self._size = rank, world_size
        self._open_store, self._ended = open_store, ended
        self.serving_now = False
        self.agreed = False
        """All ranks know of a request, and end after the step that is under way."""
        self.dropped = False
        """The step under way is lost. Main threads no longer count: what they are stuck in may raise at last."""
        self.save_seconds: float | None = None
        """What a save takes, if that is known."""
        self._changed = threading.Condition()
        self._first_signal: float | None = None
        self._heard: float | None = None
        self._first = 0
        """The number of an agreement, from 1."""
        self._step = 0
        self._entered = self._due = 0
        """Agreements that this rank has entered; the number of the one that the state is up to."""
        self._state: Any = None
        self._held = False
        self._running = False
        self._calls = 0

    # --- for the main thread ---

    @contextmanager
    def serving(self, grace_seconds: float, rescue: Rescue) -> Iterator[None]:
        """Training: a first signal is a request, and `grace_seconds` later all has to be saved."""
        self._store = dist.PrefixStore("stop", self._open_store())
        self._grace, self._rescue = grace_seconds, rescue
        with self._changed:
            self.serving_now = True
            self._start()
        try:
            yield
        finally:
            with self._changed:
                self.serving_now = False

    def begin(self, step: int, state: Any) -> None:
        """`step` (from 1) begins. `state` is whatever `rescue` needs to save the one before it."""
        with self._changed:
            self._step, self._state, self._due = step, state, self._entered + 1
            self._changed.notify_all()

    def asks(self) -> bool:
        """Whether this rank has a request, to be put into the agreement that it enters now."""
        with self._changed:
            self._entered += 1
            return self._heard is not None

    def admit(self, asked: bool) -> None:
        """Before the state changes, with what all ranks together said to `asks`. Does not return if it is held."""
        if asked:
            gate = self._claim(UPDATE)
            self.hear()  # not before the claim: this rank's thread must not drop what all have agreed to
            if gate == DROP:
                self._park()
            self.agreed = True
        self.thaw()

    def settle(self) -> None:
        """Before the last save of a run: no step is dropped any more. Does not return if one was."""
        if self.serving_now and self._claim(UPDATE) == DROP:
            self._park()
        self.thaw()

    def thaw(self) -> None:
        """The state may change from here on. Does not return if it is held."""
        with self._changed:
            if not self._held:
                self._state = None
        self.go_on()

    def go_on(self) -> None:
        """After a step, which may have had nothing to learn: then its state is still there, and stays. Does not return
        if it is held."""
        if self._held:
            self._park()

    # --- for the watch ---

    def signalled(self) -> Literal["first", "same", "now"]:
        """What a signal to this rank means: a request, one of which there is more to come, or to end at once."""
        now = time.monotonic()
        if self._first_signal is not None:
            return "same" if now - self._first_signal < TOGETHER_SECONDS else "now"
        if not self.serving_now:
            return "now"
        self._first_signal = now
        return "first"

    @property
    def requested(self) -> bool:
        """Whether the main thread goes on at a signal."""
        return self.serving_now or self._first_signal is not None

    @property
    def heard(self) -> bool:
        """Whether there is a request."""
        return self._heard is not None

    @property
    def seconds_left(self) -> float:
        """Of the grace; infinite without a request."""
        return math.inf if self._heard is None else max(0.0, self._heard + self._grace - time.monotonic())

    def hear(self) -> None:
        """There is a request, on this rank or another. Kept until training begins."""
        with self._changed:
            if self._heard is None:
                self._heard = time.monotonic()
                self._first = self._entered + 1
                self._start()

    # --- the thread ---

    def _start(self) -> None:
        if self.serving_now and self._heard is not None and not self._running:
            self._running = True
            threading.Thread(target=self._run, name="stop", daemon=True).start()

    def _run(self) -> None:
        try:
            first = self._decide()
            if first is None:
                return
            self.dropped = True
            told = self._saved(first)
        except dist.DistError:
            return  # the job's store is gone: the watch says so
        except BaseException as error:
            told = f"nothing more was saved: {type(error).__name__}: {error}"
        self._ended(told)

    def _decide(self) -> int | None:
        """Wait for the gate's first claim, or make it. The first agreement that is not passed; None if all are."""
        assert self._heard is not None
        self._store.set(f"first/{self._rank}", str(self._first))
        names = [f"first/{rank}" for rank in range(self._size)]
        first: int | None = None
        claimed: str | None
        while self.serving_now:
            time.sleep(_POLL_SECONDS)
            late = time.monotonic() >= self._heard + self._grace - self._reserve()
            if first is None and self._store.check(names):
                first = min(int(value) for value in self._store.multi_get(names))
            if first is None:
                continue
            if late and self._is_there(first):
                claimed = self._claim(DROP)
            else:
                claimed = self._store.get("gate").decode() if self._store.check(["gate"]) else None
            if claimed is not None:
                return first if claimed == DROP else None
        return None

    def _reserve(self) -> float:
        """Seconds of the grace that are kept for the save."""
        if self.save_seconds is None:
            return self._grace / 2
        return min(self._grace, 1.5 * self.save_seconds + 1.0)

    def _is_there(self, first: int) -> bool:
        """Whether the state is one that agreement `first` lets change, and not an earlier one."""
        return self._state is not None and self._due >= first

    def _saved(self, first: int) -> str:
        # What is passed without a claim is passed by all ranks, so a rank that has not come to `first` will.
        patience = max(_LEAST_PATIENCE, self._grace)
        with self._changed:
            there = self._changed.wait_for(lambda: self._is_there(first), patience)
            self._held, state = there, self._state
        found = self._gathered((there, self._step - 1))
        late = [str(rank) for rank, (held, _) in enumerate(found) if not held]
        if late:
            raise TimeoutError(
                f"rank {', '.join(late)} did not come to the end of step {max(step for _, step in found)}"
            )
        return self._rescue(state, self._gathered)

    def _gathered(self, value: Any) -> list[Any]:
        """Raises TimeoutError."""
        self._calls += 1
        self._store.set(f"said/{self._calls}/{self._rank}", pickle.dumps(value))  # type: ignore[arg-type]
        names = [f"said/{self._calls}/{rank}" for rank in range(self._size)]
        deadline = time.monotonic() + 2 * max(_LEAST_PATIENCE, self._grace)
        # Asked again and again: a store that waits lets no other thread in.
        while not self._store.check(names):
            if time.monotonic() > deadline:
                silent = [str(rank) for rank, name in enumerate(names) if not self._store.check([name])]
                raise TimeoutError(f"rank {', '.join(silent)} said nothing in time")
            time.sleep(_POLL_SECONDS / 2)
        return [pickle.loads(said) for said in self._store.multi_get(names)]

    def _claim(self, what: str) -> str:
        """Who has the gate."""
        return self._store.compare_set("gate", "", what).decode()

    def _park(self) -> NoReturn:
        """The process ends without this thread."""
        while True:
            time.sleep(3600.0)
