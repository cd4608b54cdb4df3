"""Cases 27 to 35 of loaders that users met: by number in a test's docstring, or the table says where.

| case | what happened to users | here |
|---|---|---|
| 27 | fewer shards than workers | below |
| 28 | a worker is killed | test_workers.py: rows do not depend on who is killed; a sample that kills two is set aside |
| 29 | no shared memory | below |
| 30 | descriptors run out | below, where a row finds no room; `loader/memory` of `make prove-data` counts them |
| 31 | workers grow | `loader/memory` of `make prove-data`: 2,000 steps |
| 32 | two runs on a host, Ctrl-C | below; test_limiter.py: one budget for both, kills leave nothing stuck |
| 33 | fork with a live decoder | test_decode.py: a fork decodes by a child of its own; test_oss.py: a store forks |
| 34 | workers in different epochs | below |
| 35 | a slow loader ends the job | below; test_faults.py and test_watch.py: what the ranks allow one another |
"""

import collections
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig
from data.encoding.tokenizer import Tokenizer
from data.loading.loader import Loader
from data.loading.pool import InThread, Workers
from data.loading.rows import build_reader, open_indexes
from data.loading.worker import receive, send
from data.plan.plan import Cursor, Plan, assign_rows
from data.types import RawSample
from tests.data.test_loader import assert_same_row
from tests.data.test_workers import children

Make = Callable[..., Any]
FULL = """
import errno, os, sys
cut = os.ftruncate
def full(fd, length):
    if "memfd" in os.readlink(f"/proc/self/fd/{fd}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    cut(fd, length)
os.ftruncate = full
"""
SLOW = """
import time
from PIL import Image
opened = Image.open
def slow(*arguments, **named):
    time.sleep(0.5)
    return opened(*arguments, **named)
Image.open = slow
"""


@pytest.fixture
def in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has every new interpreter run a script first."""

    def plant(script: str) -> None:
        (tmp_path / "planted").mkdir()
        (tmp_path / "planted" / "sitecustomize.py").write_text(script)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))

    return plant


def open_loader(config: DataConfig, readers: Any, records: list[dict] | None = None) -> Loader:
    plan = Plan(config, open_indexes(config))
    return Loader(config, plan, readers, 0, 1, Cursor(), ([] if records is None else records).append)


def descriptors() -> list[int]:
    """Open in this process, in their order."""
    return sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())


def text_only(count: int) -> list[RawSample]:
    parts = [{"type": "text", "text": " left right"}]
    return [RawSample(key=str(n), content={"parts": parts}, media={}) for n in range(count)]


@pytest.mark.timeout(250)
def test_more_workers_than_shards_read_the_same_rows(
    make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    """27."""
    folder = make_source(samples=text_only(6))
    assert len(list(folder.glob("*.tar"))) == 1
    config = make_config(folder, workers=4)
    many = open_loader(config, Workers(config))
    alone = open_loader(config, InThread(build_reader(config, tokenizer)))
    try:
        for _ in range(5):
            for row, other in zip(many.next_step()[1], alone.next_step()[1], strict=True):
                assert_same_row(row, other)
    finally:
        many.close()
        alone.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
def test_a_row_without_room_says_what_to_lower(number: int, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """29, of the message."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    before = descriptors()
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(MemoryError, match=r"no memory for a row of 8000 bytes .*lower data\.workers"):
            send(one, ("done",), np.zeros(1000))
        one.close()
        assert receive(other) is None  # nothing was begun
    assert descriptors() == before


@pytest.mark.timeout(250)
def test_a_worker_without_room_ends_the_run_and_blames_no_sample(
    make_source: Make, make_config: Make, in_workers: Callable[[str], None]
) -> None:
    """29, of the run."""
    config = make_config(make_source(samples=text_only(6)), workers=2)
    in_workers(FULL)
    records: list[dict] = []
    loader = open_loader(config, Workers(config), records)
    try:
        with pytest.raises(MemoryError, match=r"No space left.*lower data\.workers"):
            loader.next_step()
        assert records == [] and loader.stats().workers_replaced == 0
    finally:
        loader.close()


@pytest.mark.timeout(250)
def test_two_runs_of_a_user_do_not_meet(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    """32: the end of one, and a Ctrl-C that reaches its worker, are its own."""
    config = make_config(make_source(samples=text_only(12)), workers=1)
    before = set(children())
    readers = [Workers(config), Workers(replace(config, seed=4))]
    loaders = [open_loader(config, readers[0]), open_loader(replace(config, seed=4), readers[1])]
    alone = open_loader(config, InThread(build_reader(config, tokenizer)))
    try:
        for step in range(6):
            for row, other in zip(loaders[0].next_step()[1], alone.next_step()[1], strict=True):
                assert_same_row(row, other)
            if step == 2:
                loaders[1].next_step()
                os.kill(readers[1]._workers[0].process.pid, signal.SIGINT)
                loaders[1].next_step()
                loaders[1].close()
        assert loaders[0].stats().workers_replaced == loaders[1].stats().workers_replaced == 0
    finally:
        for loader in (*loaders, alone):
            loader.close()
    assert set(children()) <= before


@pytest.mark.timeout(250)
def test_workers_are_in_the_epoch_of_the_plan(make_source: Make, make_config: Make) -> None:
    """34: windows of 8 over 12 samples, so that epochs end in the middle of a window."""
    config = make_config(make_source(samples=text_only(12)), workers=2, window=8, tokens_per_row=20, rows_per_step=2)
    last = -(-3 * 12 // 8)
    seen: list[tuple[int, int]] = []
    loader = open_loader(config, Workers(config))
    try:
        while not seen or max(seen)[0] < last:
            step, rows = loader.next_step()
            for number, row in zip(assign_rows(step.rows, 1)[0], rows, strict=True):
                seen += [(step.rows[number].window, sample) for sample in row.sample_ids.tolist()]
    finally:
        loader.close()
    plan = Plan(config, open_indexes(config))
    due = np.concatenate([plan.window_samples(window)[:, 1] for window in range(last)])
    came = collections.Counter(sample for window, sample in seen if window < last)
    assert came == collections.Counter(due.tolist())
    assert collections.Counter(due[: 3 * 12].tolist()) == dict.fromkeys(range(12), 3)


@pytest.mark.timeout(250)
def test_a_slow_row_is_waited_for(make_source: Make, make_config: Make, in_workers: Callable[[str], None]) -> None:
    """35: seconds are of a sample, not of a row: a row that takes longer than one may is no fault."""
    config = make_config(
        make_source(clips=False),
        workers=1,
        rows_per_step=1,
        sample_seconds=6.0,
        tokens_per_row=800,
        patches_per_row=4000,
    )
    in_workers(SLOW)
    loader = open_loader(config, Workers(config))
    started = time.monotonic()
    try:
        (row,) = loader.next_step()[1]
        assert len(row.grids) * 0.5 > config.sample_seconds < time.monotonic() - started
        assert loader.stats().workers_replaced == 0
    finally:
        loader.close()
