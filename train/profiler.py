"""Traces of chosen steps by torch.profiler: RUN/profile/steps_10_12_rank_0.json, for Perfetto or chrome://tracing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from train.config import RunConfig


class Profiler:
    """Nothing on ranks and in steps that `profile` does not name. A traced step is slower, by some microseconds for
    each operation; nothing that it computes is another."""

    def __init__(self, run: RunConfig, rank: int) -> None:
        first, last = run.profile.steps or (0, -1)
        self._first, self._last = (first, last) if rank in run.profile.ranks else (0, -1)
        self._folder = Path(run.run_dir) / "profile"
        self._rank = rank
        self._begun = 0
        self._ended = 0
        self._profile: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """What is done in here is step `number`, counted from 1."""
        if not self._first <= number <= self._last:
            yield
            return
        if self._profile is None:  # a resumed run may begin in the middle
            self._begun = number
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()
        with torch.profiler.record_function(f"step {number}"):
            yield
        self._ended = number
        if number == self._last:
            self.close()

    def close(self) -> None:
        """Write what there is. A trace that cannot be written is told and ends nothing."""
        if self._profile is None:
            return
        profile, self._profile = self._profile, None
        path = self._folder / f"steps_{self._begun}_{self._ended}_rank_{self._rank}.json"
        try:
            profile.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            print(f"the trace {path} was not written: {error}", flush=True)
            return
        print(f"trace of steps {self._begun} to {self._ended}: {path}", flush=True)
