"""What a loader with worker processes gives, keeps and leaves behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.encoding.tokenizer import load_tokenizer
from data.loading.loader import Loader
from data.loading.pool import InThread, Workers, open_readers
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan, StepPlan, assign_rows
from data.types import PackedRow
from tests.harness.runs import data_config, make_data

_ARRAYS = ("tokens", "targets", "positions", "segment_lengths", "grids", "visual_index", "patches", "sample_ids")
LAYOUTS = tuple(product((1, 2, 4), (0, 2), (1, 4)))
"""DP size, workers, steps read ahead."""


@dataclass(frozen=True, kw_only=True)
class Killed:
    """Steps read by workers of which one was killed every few steps."""

    lost: int
    """Samples of the plan that did not come, or not in their place."""
    repeated: int
    """Samples that came though they were not due."""
    differing: int
    """Rows with another bit than those that one thread reads."""
    workers: int
    """That were killed."""


def killed_workers(steps: int, every: int) -> Killed:
    """Kill a worker after every so many steps."""
    with tempfile.TemporaryDirectory(prefix="triptych-loader-") as folder:
        config = replace(data_config(make_data(Path(folder))), workers=2)
        plan = Plan(config, open_indexes(config))
        workers = Workers(config)
        loader = Loader(config, plan, workers, 0, 1, Cursor(), lambda _: None)
        reader = InThread(build_reader(config, load_tokenizer(config.tokenizer)))
        alone = Loader(config, plan, reader, 0, 1, Cursor(), lambda _: None)
        lost = repeated = differing = 0
        try:
            for number in range(steps):
                if number % every == every - 1:
                    workers._workers[number // every % 2].process.kill()
                step, rows = loader.next_step()
                for row, other in zip(rows, alone.next_step()[1], strict=True):
                    differing += not _same(row, other)
                due = [i for n in assign_rows(step.rows, 1)[0] for _, i in step.rows[n].samples]
                came = [i for row in rows for i in row.sample_ids.tolist()]
                lost += sum(one != two for one, two in zip(due, came, strict=False)) + max(0, len(due) - len(came))
                repeated += max(0, len(came) - len(due))
            return Killed(lost=lost, repeated=repeated, differing=differing, workers=loader.stats().workers_replaced)
        finally:
            loader.close()
            alone.close()


def rows_that_differ(steps: int) -> tuple[int, int]:
    """(rows with another bit than those that one thread reads for one replica, rows) over all LAYOUTS."""
    with tempfile.TemporaryDirectory(prefix="triptych-loader-") as folder:
        config = data_config(make_data(Path(folder)))
        plan = Plan(config, open_indexes(config))
        expected = _read_steps(config, plan, 0, 1, steps)
        differing = total = 0
        for size, workers, prefetch in LAYOUTS:
            changed = replace(config, workers=workers, prefetch_steps=prefetch)
            for rank in range(size):
                for (step, rows), (_, whole) in zip(
                    _read_steps(changed, plan, rank, size, steps), expected, strict=True
                ):
                    due = [whole[number] for number in assign_rows(step.rows, size)[rank]]
                    differing += sum(not _same(row, other) for row, other in zip(rows, due, strict=True))
                    total += len(rows)
        return differing, total


def _read_steps(
    config: DataConfig, plan: Plan, rank: int, size: int, steps: int
) -> list[tuple[StepPlan, list[PackedRow]]]:
    readers = open_readers(config, load_tokenizer(config.tokenizer), open_indexes(config))
    loader = Loader(config, plan, readers, rank, size, Cursor(), lambda _: None)
    try:
        return [loader.next_step() for _ in range(steps)]
    finally:
        loader.close()


def _same(one: PackedRow, other: PackedRow) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in _ARRAYS)


def growth(steps: int, settled: int) -> tuple[float, int]:
    """(megabytes, descriptors) that trainer and workers hold more after `steps` steps than after `settled`."""
    with tempfile.TemporaryDirectory(prefix="triptych-loader-") as folder:
        config = replace(data_config(make_data(Path(folder))), workers=2)
        workers = Workers(config)
        loader = Loader(config, Plan(config, open_indexes(config)), workers, 0, 1, Cursor(), lambda _: None)
        pids = [os.getpid(), *(worker.process.pid for worker in workers._workers)]
        try:
            for _ in range(settled):
                loader.next_step()
            before, opened = sum(map(_resident, pids)), sum(map(_descriptors, pids))
            for _ in range(steps - settled):
                loader.next_step()
            return (sum(map(_resident, pids)) - before) / 2**20, sum(map(_descriptors, pids)) - opened
        finally:
            loader.close()


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def read_for_ever(folder: Path) -> None:
    """A trainer of which the loader is all there is; says so once it has its first step."""
    loader = _open(folder)
    loader.next_step()
    print("reading", flush=True)
    while True:
        loader.next_step()


def _open(folder: Path) -> Loader:
    """Two workers with a decode cache."""
    config = data_config(folder)
    config = replace(config, workers=2, video=replace(config.video, cache_dir=str(folder / "cache")))
    return Loader(config, Plan(config, open_indexes(config)), Workers(config), 0, 1, Cursor(), lambda _: None)


def left_behind(plant: str | None) -> dict[str, int]:
    """After SIGKILL of a trainer: its processes that live on for 5 s; new files in shared memory and its folder for
    temporary files; and unfinished ones in its decode cache once a run was there again."""
    with tempfile.TemporaryDirectory(prefix="triptych-loader-") as folder:
        data = make_data(Path(folder))
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        before = set(Path("/dev/shm").iterdir())
        trainer = subprocess.Popen(
            [sys.executable, *(("-m", "tests.prove.planted", plant) if plant else ()), "-m", __name__, str(data)],
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        assert trainer.stdout is not None
        assert any(line == b"reading\n" for line in trainer.stdout), "it ended before its first step"
        family = _descendants(trainer.pid)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()
        deadline = time.monotonic() + 5.0
        while _alive(family) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(family) >= 2, family
        again = _open(data)
        again.next_step()
        again.close()
        shared = [
            path for path in Path("/dev/shm").iterdir() if path not in before and not path.name.startswith("sem.")
        ]
        # wandb, which megatron-core imports, makes two empty folders before anything has begun.
        files = [path for path in temporary.rglob("*") if "wandb" not in path.name]
        unfinished = list((data / "cache").glob("*/.*"))
        return {"processes": _alive(family), "files": len(shared) + len(files) + len(unfinished)}


def _alive(pids: list[int]) -> int:
    return sum(Path(f"/proc/{pid}").exists() for pid in pids)


def _descendants(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(path.parent.name), *_descendants(int(path.parent.name))]
    return found


if __name__ == "__main__":
    read_for_ever(Path(sys.argv[1]))
