"""Who reads rows for a loader: processes that are replaced when they die, or the loader's own thread."""

import collections
import logging
import os
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from data.child import start_child
from data.config import DataConfig
from data.encoding.tokenizer import Tokenizer
from data.loading.rows import ReadStats, RowReader, SourceIndex
from data.loading.worker import Task, receive, send
from data.types import PackedRow

log = logging.getLogger(__name__)

Result = tuple[PackedRow, list[dict[str, Any]]] | Exception
"""A row and a record for each sample that could not be decoded, or what ends the run."""

Ended = tuple[tuple[int, int], Result]
"""Number of a task and what came of it."""

START_SECONDS = 120.0  # imports from a cold network file system
STARTS_IN_VAIN = 3
DEATHS = 2
"""Workers that die over one sample, one after the other, before it counts as bad: one may have had another cause."""


class Readers(Protocol):
    """Takes tasks and gives their results in any order."""

    def has_room(self) -> bool:
        """Whether another task would be begun at once."""
        ...

    def give(self, task: Task) -> None: ...

    def collect(self, seconds: float) -> list[Ended]:
        """(number, result) of tasks that ended, after waiting for at most so long."""
        ...

    def stats(self) -> ReadStats:
        """Sums over all processes, those that were replaced included."""
        ...

    def interrupt(self) -> None:
        """End what lasts, from any thread; the task at hand may fail."""
        ...

    def close(self) -> None: ...


class InThread:
    """Reads in the thread that gives the task."""

    def __init__(self, reader: RowReader) -> None:
        self._reader = reader
        self._ended: list[Ended] = []

    def has_room(self) -> bool:
        return not self._ended

    def give(self, task: Task) -> None:
        result: Result
        try:
            result = self._reader.read(task.row, task.bad, task.uses)
        except Exception as error:
            result = error
        self._ended.append((task.number, result))

    def collect(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def stats(self) -> ReadStats:
        return self._reader.stats()

    def interrupt(self) -> None:
        self._reader.close()  # of the clip's decoder

    def close(self) -> None:
        self._reader.close()


def open_readers(config: DataConfig, tokenizer: Tokenizer, indexes: Sequence[SourceIndex]) -> Readers:
    """The configured number of processes; with none, rows are read in the loader's thread."""
    return Workers(config) if config.workers else InThread(RowReader(config, tokenizer, indexes))


class _Worker:
    """A child process and what it is at."""

    def __init__(self, config: DataConfig) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self.process = start_child("data.loading.worker", str(number), pass_fds=(number,), pipes=False)
        self.sock = ours
        self.task: Task | None = None
        self.sample: tuple[int, int] | None = None
        """Last begun."""
        self.ready = False
        self.stats = ReadStats()
        self.since = time.monotonic()
        send(ours, config)

    def end(self) -> int:
        """Kill it; returns its exit status."""
        self.process.kill()
        self.sock.close()
        return self.process.wait()


class Workers:
    """`config.workers` processes. What a dead one was reading is read again by its successor, in the same place."""

    def __init__(self, config: DataConfig) -> None:
        if not hasattr(os, "memfd_create"):
            raise ValueError(
                f"data.workers={config.workers} needs Linux; set data.workers=0 to read in the trainer itself"
            )
        self._config = config
        self._again: collections.deque[Task] = collections.deque()
        self._deaths: collections.Counter[tuple[int, int]] = collections.Counter()
        self._bad: dict[tuple[int, int], str] = {}
        self._in_vain = 0
        self._of_replaced = ReadStats()
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        for _ in range(config.workers):
            self._start()

    def has_room(self) -> bool:
        return not self._again and any(worker.task is None for worker in self._workers)

    def give(self, task: Task) -> None:
        """Hand a task to a worker that has none; there must be one (`has_room`)."""
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task, worker.sample, worker.since = task, None, time.monotonic()
        try:
            send(worker.sock, task._replace(bad={s: why for s, why in self._bad.items() if s in task.row.samples}))
        except (BrokenPipeError, ConnectionResetError):
            self._replace(worker)

    def collect(self, seconds: float) -> list[Ended]:
        ended: list[Ended] = []
        for key, _ in self._selector.select(seconds):
            self._hear(key.data, ended)
        for worker in list(self._workers):
            limit = self._config.sample_seconds if worker.ready else START_SECONDS
            if (worker.task is not None or not worker.ready) and time.monotonic() - worker.since > limit:
                self._replace(worker, f"took more than {limit:.0f} s")
        while self._again and any(worker.task is None for worker in self._workers):
            self.give(self._again.popleft())
        return ended

    def stats(self) -> ReadStats:
        return sum((worker.stats for worker in self._workers), self._of_replaced)

    def interrupt(self) -> None:
        """Nothing: `collect` waits only as long as it is told."""

    def close(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []
        self._selector.close()

    def _start(self) -> None:
        worker = _Worker(self._config)
        self._workers.append(worker)
        self._selector.register(worker.sock, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker, ended: list[Ended]) -> None:
        try:
            received = receive(worker.sock)
        except ConnectionResetError:
            received = None
        if received is None:
            self._replace(worker)
            return
        (kind, *said), payload = received
        worker.since = time.monotonic()
        if kind == "ready":
            worker.ready, self._in_vain = True, 0
        elif kind == "at":
            worker.sample = said[0]
        elif kind == "done":
            assert worker.task is not None
            for sample in worker.task.row.samples:
                self._deaths.pop(sample, None)  # whatever ended a worker over it before, it was not the sample
            worker.task, worker.stats = None, said[2]
            ended.append((said[0], (payload, said[1])))
        elif said[0] is None:  # it could not even begin
            raise said[1]
        else:
            worker.task = None
            ended.append((said[0], said[1]))

    def _replace(self, worker: _Worker, why: str = "") -> None:
        """Start another process in the place of one that died or is stuck, and have its task done again."""
        self._selector.unregister(worker.sock)
        self._workers.remove(worker)
        status = worker.end()
        why = why or (f"was ended by signal {-status}" if status < 0 else f"ended with status {status}")
        if not worker.ready:
            self._in_vain += 1
            if self._in_vain >= STARTS_IN_VAIN:
                raise RuntimeError(
                    f"{self._in_vain} data workers in a row {why} before they were ready; its stderr says why"
                )
        elif worker.task is not None and worker.sample is not None:
            self._deaths[worker.sample] += 1
            if self._deaths[worker.sample] >= DEATHS:
                self._bad[worker.sample] = f"a worker that read it {why}, {DEATHS} times"
        if worker.task is not None:
            self._again.append(worker.task)
        self._of_replaced += replace(worker.stats, workers_replaced=1)
        source = f" at sample {worker.sample[1]} of source {worker.sample[0]}" if worker.sample else ""
        log.warning("a data worker %s%s; another takes its place", why, source)
        self._start()
