"""Seconds of what a device does, read without waiting for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up intervals. On a GPU they are of its stream, where the host is ahead of what it has asked for."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._intervals: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0
        self._began: torch.cuda.Event | None = None
        self._started = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add what is done in here."""
        self.start()
        yield
        self.stop()

    def start(self) -> None:
        """An interval begins; there is one at a time."""
        self._started = time.perf_counter()
        if self._on_gpu:
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()

    def stop(self) -> None:
        """It ends."""
        if self._began is None:
            self._seconds += time.perf_counter() - self._started
        else:
            ended = torch.cuda.Event(enable_timing=True)
            ended.record()
            self._intervals.append((self._began, ended))

    def take(self) -> float:
        """The sum, and begin at zero again. On a GPU it waits for the last interval's end: ask when that has passed."""
        if self._intervals:
            self._intervals[-1][1].synchronize()
        seconds = self._seconds + sum(began.elapsed_time(ended) for began, ended in self._intervals) / 1e3
        self._intervals.clear()
        self._seconds = 0.0
        return seconds
