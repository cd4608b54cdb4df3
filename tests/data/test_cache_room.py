"""The room of the decode cache: bounded, given to what the plan needs first, and hurt by nothing that dies."""

import fcntl
import logging
import os
import resource
import time
from pathlib import Path

import pytest

from data.visual import cache_room
from data.visual.cache_file import HEADER_BYTES, Use
from data.visual.decode_cache import DecodeCache
from tests.data.cache_workers import (
    FILE_BYTES,
    key_of,
    kill_and_replace,
    killed_by_its_file,
    killed_writer,
    put,
    start,
    stored,
    used_bytes,
)


def test_cache_stays_below_its_bound_and_drops_the_longest_unread(tmp_path: Path) -> None:
    bound = 5 * FILE_BYTES
    cache = DecodeCache(tmp_path, bound)
    for number in range(5):
        put(cache, number)
        os.utime(cache._path(key_of(number)), (number, number))
    assert cache.get(key_of(0)) is not None, "reading makes it recent"
    for number in range(5, 9):
        put(cache, number)
        assert used_bytes(tmp_path) <= bound
    assert stored(tmp_path, range(9)) >= {8, 0} and 1 not in stored(tmp_path, range(9))
    assert cache.counters.evicted == 9 - len(stored(tmp_path, range(9)))
    assert cache.counters.evicted_bytes == cache.counters.evicted * FILE_BYTES


def test_an_item_larger_than_the_cache_goes_by_it(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, FILE_BYTES - 1)
    put(cache, 0)
    assert cache.get(key_of(0)) is None and cache.counters.bypassed == 1
    cache = DecodeCache(tmp_path, FILE_BYTES)
    for number in (0, 1):
        put(cache, number)
        assert cache.get(key_of(number)) is not None
    assert used_bytes(tmp_path) == FILE_BYTES


def test_what_the_plan_needs_last_goes_first(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 6 * FILE_BYTES)
    for number, next_step in enumerate([500, 30, None, 1000, 20]):
        put(cache, number, Use(run="a", step=10, next_step=next_step))
    put(cache, 5)  # no run has planned it
    put(cache, 6, Use(run="a", step=11, next_step=600))
    assert stored(tmp_path, range(7)) == {0, 1, 3, 4, 6}, "gone: what is needed no more, and what nobody planned"
    put(cache, 7, Use(run="a", step=12, next_step=40))
    put(cache, 8, Use(run="a", step=12, next_step=50))
    assert stored(tmp_path, range(9)) == {0, 1, 4, 7, 8}, "gone: 988 and 588 steps ahead"
    assert cache.get(key_of(1), Use(run="a", step=30, next_step=3000)) is not None
    put(cache, 9, Use(run="a", step=31, next_step=60))
    put(cache, 10, Use(run="a", step=31, next_step=70))
    assert stored(tmp_path, range(11)) == {4, 7, 8, 9, 10}, "a read says when the next one is"


def test_what_would_be_evicted_next_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    for step in range(100):  # 20 clips in turn
        use = Use(run="a", step=step, next_step=step + 20)
        if cache.get(key_of(step % 20), use) is None:
            put(cache, step % 20, use)
    assert cache.counters.stored < 15 and cache.counters.bypassed > 40
    assert cache.counters.hits >= 0.85 * 4 * 9
    put(cache, 90, Use(run="a", step=100, next_step=101))
    assert 90 in stored(tmp_path, range(99)), "needed soon"
    later = time.time() + cache_room.HORIZON_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: later)
    put(cache, 91, Use(run="a", step=100, next_step=120))
    assert 91 in stored(tmp_path, range(99)), "what was learnt of a plan is not kept for ever"


def test_the_nearest_use_of_several_runs_counts(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 4 * FILE_BYTES)
    put(cache, 0, Use(run="a", step=100, next_step=9000))
    assert cache.get(key_of(0), Use(run="b", step=5000, next_step=5010)) is not None
    put(cache, 1, Use(run="a", step=100, next_step=200))
    put(cache, 2, Use(run="a", step=101, next_step=300))
    put(cache, 3, Use(run="b", step=5001, next_step=5400))
    put(cache, 4, Use(run="a", step=102, next_step=250))
    assert stored(tmp_path, range(5)) == {0, 1, 4}, "10 steps ahead, 98, 148; gone: 198 and 399"


def test_a_run_that_is_over_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DecodeCache(tmp_path, 3 * FILE_BYTES)
    put(cache, 0, Use(run="old", step=1, next_step=2))
    later = time.time() + 2 * cache_room.RUN_SECONDS
    monkeypatch.setattr(time, "time", lambda: later)
    put(cache, 1, Use(run="new", step=1, next_step=50))
    put(cache, 2, Use(run="new", step=1, next_step=60))
    put(cache, 3, Use(run="new", step=1, next_step=70))
    assert 0 not in stored(tmp_path, range(4))


def test_what_was_due_long_ago_is_not_kept_for_ever(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 3 * FILE_BYTES)
    put(cache, 0, Use(run="a", step=1, next_step=2))
    for number in (1, 2, 3):
        put(cache, number, Use(run="a", step=2 + cache_room.LATE_STEPS, next_step=9000))
    assert 0 not in stored(tmp_path, range(4))


def test_foreign_files_are_never_removed_nor_replaced(tmp_path: Path) -> None:
    """mosaicml/streaming #988: an evictor removed what nobody else had."""
    precious = tmp_path / "elsewhere" / "precious"
    precious.mkdir(parents=True)
    folder = tmp_path / "cache"
    cache = DecodeCache(folder, 3 * FILE_BYTES)
    texts = {
        precious / f"{key_of(90)}.clip": b"TRIPCLIP through a link to a folder",
        folder / "notes.clip": b"TRIPCLIP in no folder of ours",
        folder / key_of(0)[:2] / "notes.clip": b"TRIPCLIP under another name",
        folder / key_of(0)[:2] / ".notes.tmp": b"not our way to name what is being written",
        folder / key_of(1)[:2] / f"{key_of(1)}.clip": b"our name, another's file" * 1000,
        precious / "target": b"TRIPCLIP through a link",
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    (folder / key_of(2)[:2]).mkdir(exist_ok=True)
    (folder / key_of(2)[:2] / f"{key_of(2)}.clip").symlink_to(precious / "target")
    linked = next(n for n in range(100, 1000) if not (folder / key_of(n)[:2]).exists())
    (folder / key_of(linked)[:2]).symlink_to(precious)
    for number in [*range(12), linked]:
        cache.get(key_of(number))
        put(cache, number)
    DecodeCache(folder, FILE_BYTES)
    for path, text in texts.items():
        assert path.read_bytes() == text
    assert sorted(path.name for path in precious.iterdir()) == sorted(["target", f"{key_of(90)}.clip"])


def test_eight_processes_and_kill_9(tmp_path: Path) -> None:
    bound = 10 * (HEADER_BYTES + 16 * 112 * 112 * 3)
    killed, most, wrong = kill_and_replace(tmp_path, bound, 8, 4.0)
    assert killed > 8 and wrong == 0
    assert bound / 2 < most <= bound
    cache = DecodeCache(tmp_path, bound)
    assert not list(tmp_path.glob("*/.*"))
    intact = [cache.get(path.stem) for path in tmp_path.glob("*/*.clip")]
    assert intact and all(frames is not None for frames in intact)


def test_what_a_killed_writer_leaves_counts_until_it_is_swept(tmp_path: Path) -> None:
    process = start(killed_writer, tmp_path, FILE_BYTES)
    process.join(120)
    assert process.exitcode == -9
    assert used_bytes(tmp_path) == FILE_BYTES, "room was taken before the first byte"
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    assert used_bytes(tmp_path) == 0
    put(cache, 0)
    assert cache.get(key_of(0)) is not None


def test_a_writer_killed_as_its_file_is_there_is_counted(tmp_path: Path) -> None:
    """It was not: a crowd that is killed often went over the bound, a file for each such death."""
    cache = DecodeCache(tmp_path, 3 * FILE_BYTES)
    process = start(killed_by_its_file, tmp_path, FILE_BYTES)
    process.join(120)
    assert process.exitcode == -9 and used_bytes(tmp_path) == FILE_BYTES
    put(cache, 1)
    put(cache, 2)
    with cache._room.reserve(key_of(3), FILE_BYTES):
        assert used_bytes(tmp_path) <= 3 * FILE_BYTES


def test_who_counts_never_meets_a_file_between_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that had seen the temporary name missed a file that was named meanwhile."""
    monkeypatch.setattr(cache_room, "LOCK_SECONDS", 0.01)
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    named = cache._path(key_of(0))
    with cache._room.reserve(key_of(0), FILE_BYTES) as reserved:
        assert reserved is not None
        with cache._room._locked():
            assert not cache._room.publish(reserved[1], named) and not named.exists()
        assert cache._room.publish(reserved[1], named) and named.exists()


def test_what_a_living_writer_has_begun_is_left_to_it(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 2 * FILE_BYTES)
    with cache._room.reserve(key_of(0), FILE_BYTES) as reserved:
        assert reserved is not None
        other = DecodeCache(tmp_path, 2 * FILE_BYTES)
        put(other, 1)
        put(other, 2)
        assert reserved[1].exists() and used_bytes(tmp_path) == 2 * FILE_BYTES
    assert used_bytes(tmp_path) == FILE_BYTES


def test_a_file_size_limit_costs_the_saving_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES // 2, before[1]))
    try:
        with caplog.at_level(logging.WARNING):
            put(cache, 0)
            put(cache, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert used_bytes(tmp_path) == 0 and cache.counters.bypassed == 2
    assert sum("cannot write" in record.message for record in caplog.records) == 1
    put(cache, 0)
    assert cache.get(key_of(0)) is not None


def test_a_disk_smaller_than_the_bound_is_lived_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = os.posix_fallocate

    def full(descriptor: int, offset: int, length: int) -> None:
        if used_bytes(tmp_path) + length > 3 * FILE_BYTES:
            raise OSError(28, "No space left on device")
        allocate(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = DecodeCache(tmp_path, 100 * FILE_BYTES)
    for number in range(8):
        put(cache, number)
        assert cache.get(key_of(number)) is not None
    assert cache.counters.bypassed == 0


def test_a_folder_that_cannot_be_is_told_and_lived_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        cache = DecodeCache(tmp_path / "file" / "cache", 10 * FILE_BYTES)
        put(cache, 0)
        with cache.flight(key_of(0), 1.0) as waited:
            assert not waited
    assert cache.get(key_of(0)) is None and len(caplog.records) == 1


def test_a_stopped_evictor_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_room, "LOCK_SECONDS", 0.2)
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    with open(tmp_path / "room", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start_time = time.monotonic()
        put(cache, 0)
        assert time.monotonic() - start_time < 60 and cache.counters.bypassed == 1
    put(cache, 0)
    assert cache.get(key_of(0)) is not None
