"""Small runs of a trainer in this world's processes, for what they write into metrics.jsonl."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from data.loading.rows import ReadStats
from data.store.store import LocalStore
from parallel.config import ParallelConfig
from parallel.watch import Watch
from parallel.world import model_parallel, pick_device
from train.resolve import from_yaml
from train.trainer import Trainer


def train_over_storage(folder: Path, recipe: str, slow_replica: int, seconds: float) -> list[ReadStats]:
    """A run over the data axis in which each read of one replica takes `seconds`; run it on every rank.

    Returns what this rank's reader had counted at each step.
    """
    run = from_yaml((folder / f"{recipe}.yaml").read_text())
    run = replace(run, run_dir=str(folder / "run"), data=replace(run.data, prefetch_steps=1))
    counted: list[ReadStats] = []
    waited_for = threading.Event()
    with (
        model_parallel(ParallelConfig(), pick_device(), seed=0) as groups,
        _slow_reads(seconds if groups.dp_rank == slow_replica else 0.0, waited_for),
    ):
        trainer = Trainer(run, groups, Watch(run.parallel, run.run_dir, ()))
        stats, take = trainer.batches.stats, trainer.batches.next

        def taken() -> Any:
            waited_for.set()
            return take()

        def noted() -> ReadStats:
            counted.append(stats())
            return counted[-1]

        with patch.object(trainer.batches, "stats", noted), patch.object(trainer.batches, "next", taken):
            trainer.fit()
    return counted


@contextmanager
def _slow_reads(seconds: float, waited_for: threading.Event) -> Iterator[None]:
    """From when they are waited for: what is read while a busy host still makes the trainer is no wait."""
    read = LocalStore.read_range

    def slow(self: LocalStore, *arguments: Any) -> bytes:
        if threading.current_thread() is not threading.main_thread():
            waited_for.wait(120)
        time.sleep(seconds)
        return read(self, *arguments)

    with patch.object(LocalStore, "read_range", slow):
        yield


def train_on_bad_samples(folder: Path, recipe: str, stops: tuple[int, ...]) -> None:
    """A run that stops after each of these steps, and goes on from its checkpoint; any number of samples may be bad."""
    run = from_yaml((folder / f"{recipe}.yaml").read_text())
    run = replace(run, run_dir=str(folder / "run"), data=replace(run.data, bad_share=1.0, bad_in_row=1000))
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        for stop in stops:
            now = replace(run, stop_after_steps=stop, resume=stop > stops[0])
            Trainer(now, groups, Watch(run.parallel, run.run_dir, ())).fit()
