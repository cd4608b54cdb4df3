"""What the cases of a proof share: worlds of processes, the one-process reference, sample shards."""

import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from parallel.config import ParallelConfig
from tests.harness.compare import Record
from tests.harness.layouts import train_on_layout
from tests.harness.lives import Nursery
from tests.harness.runs import make_data
from tests.harness.server import end_server
from tests.harness.world import World, WorldFailure
from tests.prove.measures import planted

LAYOUTS = {
    "one process": (1, ParallelConfig()),
    "DP2": (2, ParallelConfig()),
    "TP2": (2, ParallelConfig(tensor=2)),
    "TP2+SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "PP2": (2, ParallelConfig(pipeline=2)),
    "TP2xPP2": (4, ParallelConfig(tensor=2, pipeline=2)),
    "TP2xPP2+SP": (4, ParallelConfig(tensor=2, pipeline=2, sequence_parallel=True)),
    "DP2xPP2": (4, ParallelConfig(pipeline=2)),
    "DP2xTP2": (4, ParallelConfig(tensor=2)),
    "DP2xTP2+SP": (4, ParallelConfig(tensor=2, sequence_parallel=True)),
}


class Worlds:
    """Started on first use and then kept: a start costs seconds a process, waiting costs memory alone."""

    def __init__(self) -> None:
        self._open: dict[int, World] = {}
        self._nursery: Nursery | None = None

    def run(self, size: int, task: Any, timeout: float = 240.0, **kwargs: Any) -> list[Any]:
        """Results by rank. A world in which a task failed is not used again."""
        if size not in self._open:
            self._open[size] = World(size)
        try:
            return self._open[size].run(task, timeout=timeout, **kwargs)
        except WorldFailure:
            self._open.pop(size).close()
            raise

    @property
    def nursery(self) -> Nursery:
        """For runs of the real trainer that are killed."""
        self._nursery = self._nursery or Nursery()
        return self._nursery

    def close(self) -> None:
        """End every process."""
        for world in self._open.values():
            world.close()
        self._open.clear()
        end_server()


class Context:
    """One pass over the cases, with or without a planted defect."""

    def __init__(self, worlds: Worlds, plant: str | None) -> None:
        self.worlds = worlds
        self.plant = plant
        self._known: dict[Hashable, Any] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="triptych-proof-")
        self._data: Path | None = None

    @property
    def scratch(self) -> Path:
        """An empty folder at first; gone after `close`."""
        return Path(self._scratch.name)

    @property
    def data(self) -> Path:
        """Sample shards with their index."""
        if self._data is None:
            self._data = make_data(self.scratch / "data")
        return self._data

    def run(self, size: int, task: Any, **kwargs: Any) -> list[Any]:
        """Results of a task by rank, run with the planted defect if there is one."""
        if self.plant is None:
            return self.worlds.run(size, task, **kwargs)
        return self.worlds.run(size, planted, plant=self.plant, measure=task, arguments=kwargs)

    def run_here(self, task: Any, **kwargs: Any) -> Any:
        """Result of a task in this process, which is in no world, with the planted defect if there is one."""
        return task(**kwargs) if self.plant is None else planted(self.plant, task, kwargs)

    def once(self, size: int, task: Any, **kwargs: Hashable) -> list[Any]:
        """What `run` gives, run for the first case that asks and kept for the others."""
        key = (size, task, *sorted(kwargs.items()))
        if key not in self._known:
            self._known[key] = self.run(size, task, **kwargs)
        return self._known[key]

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made for the first case that asks and kept for the others."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def records(self, stage: str, layout: str) -> list[Record]:
        """What each rank saw of a training stage; run once a layout."""
        size, parallel = LAYOUTS[layout]
        return self.once(size, train_on_layout, parallel=parallel, stage=stage)

    def close(self) -> None:
        """Remove what was written; worlds stay."""
        self._scratch.cleanup()
