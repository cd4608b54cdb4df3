"""What processes that share a decode cache do in tests: read, write, check each other's frames, and are killed."""

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from data.types import Bytes
from data.visual.cache_file import HEADER_BYTES, Use
from data.visual.decode_cache import DecodeCache, frame_key

SHAPE = (4, 28, 56, 3)
FILE_BYTES = HEADER_BYTES + int(np.prod(SHAPE))
WRONG = 7  # exit status of a process that was given other frames than were stored


def key_of(number: int) -> str:
    return frame_key(f"clip {number}", "decord")


def frames_of(number: int, shape: tuple[int, ...] = SHAPE) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def put(cache: DecodeCache, number: int, use: Use | None = None) -> None:
    cache.put(key_of(number), frames_of(number), "decord", use)


def stored(folder: Path, numbers: range) -> set[int]:
    return {number for number in numbers if (folder / key_of(number)[:2] / f"{key_of(number)}.clip").exists()}


def hammer(folder: Path, max_bytes: int, items: int, seconds: float, seed: int) -> None:
    """Read at random, store what is missing; leaves with WRONG at the first wrong byte."""
    known = [frames_of(number, (16, 112, 112, 3)) for number in range(items)]
    cache = DecodeCache(folder, max_bytes)
    random = np.random.default_rng(seed)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        number = int(random.integers(items))
        found = cache.get(key_of(number))
        if found is None:
            cache.put(key_of(number), known[number], "decord")
        elif not np.array_equal(found, known[number]):
            os._exit(WRONG)


def planted_hammer(plant: str | None, *arguments: Any) -> None:
    """`hammer`, with a defect of the proof."""
    if plant is not None:
        from tests.prove.data_video_defects import PLANTS

        PLANTS[plant][0]()
    hammer(*arguments)


def killed_writer(folder: Path, nbytes: int) -> None:
    """Dies in the middle of a write."""
    cache = DecodeCache(folder, 10 * nbytes)
    with cache._room.reserve("0" * 32, nbytes) as reserved:
        assert reserved is not None
        os.write(reserved[0], b"TRIPCLIP half")
        os.kill(os.getpid(), 9)


def killed_by_its_file(folder: Path, nbytes: int) -> None:
    """Dies as the file it has room for is there, and nothing else has been done."""
    cache = DecodeCache(folder, 10 * nbytes)
    allocate = cache._room._allocate

    def fatal(key: str, nbytes: int) -> None:
        allocate(key, nbytes)
        os.kill(os.getpid(), 9)

    cache._room._allocate = fatal  # type: ignore[method-assign, assignment]
    put(cache, 0)


def start(task: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that does a task; spawned, as a fork would inherit this one's descriptors."""
    process = get_context("spawn").Process(target=task, args=arguments, daemon=True)
    process.start()
    return process


def used_bytes(folder: Path) -> int:
    """Of all frames there are, those being written included."""
    total = 0
    for path in [*folder.glob("??/*.clip"), *folder.glob("??/.*.tmp")]:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def kill_and_replace(
    folder: Path, max_bytes: int, processes: int, seconds: float, task: Callable[..., None] = hammer
) -> tuple[int, int, int]:
    """(processes killed, most bytes ever seen, processes that saw a wrong byte) of a crowd over one cache."""
    items, patience = 24, 300.0
    crowd = [start(task, folder, max_bytes, items, patience, seed) for seed in range(processes)]
    began = time.monotonic()
    while used_bytes(folder) < max_bytes / 2:  # a busy host takes its time to start them
        assert time.monotonic() - began < 200
        time.sleep(0.05)
    random = np.random.default_rng(0)
    room = DecodeCache(folder, max_bytes)._room
    killed = most = wrong = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.02)
        with room._locked():  # a listing while files come and go would add up what never was there together
            most = max(most, used_bytes(folder))
        if random.random() < 0.2:
            victim = int(random.integers(processes))
            wrong += _kill(crowd[victim])
            killed += crowd[victim].exitcode == -9
            crowd[victim] = start(task, folder, max_bytes, items, patience, killed + 100)
    wrong += sum(_kill(process) for process in crowd)
    return killed + processes, most, wrong


def _kill(process: BaseProcess) -> bool:
    """End a process; whether it had left by itself, for a wrong byte."""
    process.kill()
    process.join(60)
    return process.exitcode == WRONG
