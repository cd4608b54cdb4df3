"""Many light processes that read from one store at once, as the workers of a node do."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.store.oss import OssStore
from data.store.stats import StoreStats


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one process saw."""

    reads: int
    wrong: int
    errors: list[str]
    stats: StoreStats


def read_for(store: OssStore, seed: int, seconds: float, name: str, length: int, data: bytes) -> Read:
    """Read random ranges of one object until the time is over."""
    os.nice(5)  # a real service does not share its processors with readers
    chosen = random.Random(seed)
    end = time.monotonic() + seconds
    reads = wrong = 0
    errors = []
    while time.monotonic() < end:
        offset = chosen.randrange(len(data) - length)
        try:
            wrong += store.read_range(name, offset, length) != data[offset : offset + length]
            reads += 1
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            break
    return Read(reads=reads, wrong=wrong, errors=errors, stats=store.stats())


def in_processes(count: int, task: Callable[..., Any], timeout: float, **kwargs: Any) -> list[Any]:
    """Results of `task(seed=i, **kwargs)` in forked processes. Forked, because importing oss2 costs half a second each.

    Raises RuntimeError if one fails or is late.
    """
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for i in range(count):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(send, task, {"seed": i, **kwargs}), daemon=True)
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    end = time.monotonic() + timeout
    try:
        results = []
        for i, pipe in enumerate(pipes):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise RuntimeError(f"process {i} of {count} has not answered in {timeout} s")
            good, result = pipe.recv()
            if not good:
                raise RuntimeError(f"process {i} of {count}: {result}")
            results.append(result)
        return results
    finally:
        for process in processes:
            process.kill()
            process.join(timeout=10)


def _work(pipe: Any, task: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    try:
        pipe.send((True, task(**kwargs)))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
