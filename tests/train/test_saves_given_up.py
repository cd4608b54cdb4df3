"""Saves that were given up, and what becomes of those after them; what main threads wait for and read meanwhile."""

import errno
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.train.test_saves import checkpoints, is_whole
from tests.train.toy_layouts import one
from train.checkpoint import disk, writing


def slowed(monkeypatch: pytest.MonkeyPatch, is_slow: Callable[[], bool]) -> threading.Event:
    """A disk that takes each block in time, and all of a save never: the event says that one is under way."""
    begun, write_block = threading.Event(), disk.write_block

    def write(descriptor: int, block: disk.Bytes) -> None:
        write_block(descriptor, block)
        if is_slow():
            begun.set()
            time.sleep(0.2)

    monkeypatch.setattr(disk, "write_block", write)
    monkeypatch.setattr(writing, "_LOOK", 0)
    return begun


def test_a_slow_save_that_was_given_up_keeps_no_other_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once because it took too long, once because the run had to end: the last save is then of the state that it was
    called with."""
    left, slow = [math.inf], [True]
    toy = one(frozen=()).fill()
    made, told = checkpoints(toy, tmp_path, seconds_left=lambda: left[0])
    begun = slowed(monkeypatch, lambda: slow[0])
    made.save(1, {}, "")
    assert begun.wait(20)
    made._saver._current.claim("given up")  # type: ignore[union-attr]
    made.settle()
    assert made._saver._last.written.is_set()  # type: ignore[union-attr]
    assert made._saver._last.tidied.wait(20) and not list(tmp_path.glob("checkpoints/step_00000001.*"))  # type: ignore[union-attr]
    begun.clear()
    made.save(2, {}, "")
    assert begun.wait(20)
    left[0], slow[0] = 0.0, False
    made.save(3, {}, "", last=True)
    for tensor in [*toy.parameters.values(), *(t for share in toy.held for t in share.tensors.values())]:
        tensor.fill_(3.0)
    outcome = made.finish()
    assert outcome is not None and outcome.step == 3 and is_whole(tmp_path)
    assert [each.fault for each in told] == ["given up", "it was still being written when the run had to end", None]


def test_the_last_save_waits_for_a_thread_that_is_in_the_kernel_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, told = checkpoints(one().fill(), tmp_path)
    monkeypatch.setattr("train.checkpoint.save._LET_GO_SECONDS", 0.0)
    hanging, go_on, sync = threading.Event(), threading.Event(), disk.sync
    monkeypatch.setattr(disk, "sync", lambda number: (hanging.set(), go_on.wait(60), sync(number)))
    made.save(1, {}, "")
    assert hanging.wait(20)
    made._saver._current.claim("given up")  # type: ignore[union-attr]
    made.save(2, {}, "")
    assert told[-1].fault == "1 rank(s) still hang in the save before"
    threading.Timer(0.3, go_on.set).start()
    made.save(3, {}, "", last=True)
    outcome = made.finish()
    assert go_on.is_set() and outcome is not None and outcome.step == 3 and is_whole(tmp_path)


def test_a_save_waits_for_room_that_the_one_before_gives_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = checkpoints(one().fill(), tmp_path, commit_seconds=60.0)
    looked, remove_folder, sync = threading.Event(), disk.remove_folder, disk.sync

    def free_bytes(_: Path) -> int:
        there = list(tmp_path.glob("checkpoints/step_00000001.*"))
        if there:
            looked.set()
        return 0 if there and told else 10**12

    def fail_once(number: int) -> None:
        monkeypatch.setattr(disk, "sync", sync)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "free_bytes", free_bytes)
    monkeypatch.setattr(disk, "sync", lambda number: fail_once(number) if told == [] and made._saver._last else None)
    monkeypatch.setattr(disk, "remove_folder", lambda path: (looked.wait(20), remove_folder(path)))
    made.save(1, {}, "")
    made.settle()
    assert told[-1].fault is not None
    made.save(2, {}, "")
    outcome = made.finish()
    assert looked.is_set() and outcome is not None and outcome.step == 2


def test_a_large_file_does_not_wait_for_the_disk_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_BLOCK", 10)
    monkeypatch.setattr(disk, "_SYNCED", 20)
    done: list[str] = []
    sync = disk.sync
    monkeypatch.setattr(disk, "sync", lambda number: (done.append("sync"), sync(number)))
    found = disk.write(tmp_path / "file", [b"a" * 45], lambda: done.append("look"))
    assert found == disk.digest(tmp_path / "file") and found.size == 45
    assert done == ["look"] * 2 + ["sync"] + ["look"] * 2 + ["sync"] + ["look"] * 2 + ["sync"]


def test_of_two_threads_that_wait_each_waits_for_the_save_that_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread may wait when the last step is saved without it."""
    made, told = checkpoints(one().fill(), tmp_path)
    go_on, make_folder = threading.Event(), disk.make_folder
    monkeypatch.setattr(disk, "make_folder", lambda path: (go_on.wait(60), make_folder(path)))
    made.save(1, {}, "")
    saver = made._saver
    first = saver._current
    assert first is not None

    def poll() -> None:  # of this thread: meanwhile another one has told of the save, and begun the next
        saver._current = replace(first, path=tmp_path / "another")

    monkeypatch.setattr(saver, "poll", poll)
    waiting = threading.Thread(target=saver._wait, args=(lambda: math.inf,), daemon=True)
    waiting.start()
    waiting.join(10)
    go_on.set()
    assert not waiting.is_alive()
    assert first.tidied.wait(20) and not told


def test_the_main_thread_reads_nothing_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = one().fill()
    made, told = checkpoints(toy, tmp_path)
    main, read_bytes = threading.get_ident(), Path.read_bytes

    def read(path: Path) -> bytes:
        assert threading.get_ident() != main, path
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        for step in (1, 2):
            made.save(step, {}, "")
            made.finish()
    assert told[-1].fault is None and not (told[-1].path / "vision.00000.safetensors").exists() and is_whole(tmp_path)
