"""Sixteen readers under a service that lets less through than they could take, by the service's own count."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.store.config import LimiterConfig
from data.store.limiter import NodeLimiter
from data.store.oss import OssStore
from tests.harness.oss_readers import Read, in_processes, read_for
from tests.harness.oss_service import OssService, make_store, oss_service, served_between

READERS = 16
LENGTH = 4096
ALONE_SECONDS = 6.0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What readers made of a capacity."""

    capacity: float
    """Requests a second."""
    unused: float
    """Share of it."""
    rejected: float
    """Share of requests."""
    late_seconds: float
    """By which the service held an answer back, in the mean of the second half."""
    failed: int
    """Reads that ended in an error or with wrong bytes."""
    miscounted: int
    """By how much requests, rejections and bytes of all clients together differ from the service's."""
    summary: str


def keep_capacity(
    seconds: float,
    budget: float,
    share: float = 0.5,
    by_bytes: bool = False,
    delays: bool = False,
    told: bool = True,
    limited: bool = True,
) -> Kept:
    """Let readers run freely, give the service a share of their slowest second as capacity, and let them run again.

    Args:
        budget: that the limiter is told, in capacities.
        by_bytes: the service limits bytes and not requests.
        delays: the service holds answers back in place of rejecting requests.
        told: it says so in the answer; otherwise it only takes longer.
        limited: False lets every reader do as it can, to compare with.
    """
    data = np.random.default_rng(1).bytes(300_000)
    length = LENGTH * 8 if by_bytes else LENGTH
    with oss_service() as (service, folder):
        service.put("set/x.tar", data)
        free = _read(service, _store(service, f"{folder}/free", 1e6), ALONE_SECONDS, length, data)
        capacity = share * _slowest_second(free[2])
        limit = {"bytes_": capacity * length} if by_bytes else {"requests": capacity}
        service.throttle(**limit, delays=delays, told=told)
        budgets = (1e6, budget * capacity * length) if by_bytes else (budget * capacity, 1e9)
        store = _store(service, f"{folder}/limited", *budgets)
        if not limited:
            store._requests._limiter = Unlimited()  # type: ignore[assignment]
        speed, refused, tenths, reads = _read(service, store, seconds, length, data)
        counts = service.counts
    served = speed * seconds
    stats = sum((read.stats for read in reads[1:]), reads[0].stats)
    late = [tenth for tenth in tenths if tenth[0] * 0.1 > tenths[-1][0] * 0.1 - seconds / 2]
    asked = counts["GET object served"] + counts.get("GET object refused", 0)
    return Kept(
        capacity=capacity,
        unused=1 - speed / capacity,
        rejected=refused / (served + refused),
        late_seconds=sum(tenth[4] for tenth in late) / max(1, sum(tenth[1] for tenth in late)),
        failed=sum(read.wrong + len(read.errors) for read in reads),
        miscounted=abs(stats.requests - asked)
        + abs(stats.rejections - counts.get("GET object refused", 0))
        + abs(stats.bytes - counts["bytes"]),
        summary=f"{capacity:.0f}/s, p50 {stats.latency(0.5) * 1e3:.1f} ms, p95 {stats.latency(0.95) * 1e3:.1f} ms",
    )


class Unlimited:
    """Holds nobody back."""

    def acquire(self, nbytes: int) -> float:
        """No wait."""
        return 0.0

    def may_retry(self) -> bool:
        """Always."""
        return True

    def served(self, nbytes: int, latency: float, delayed: bool) -> None:
        """Nothing follows."""

    def rejected(self, code: str) -> None:
        """Nothing follows."""


def _store(service: OssService, folder: str, requests: float, bytes_: float = 1e9) -> OssStore:
    limiter = LimiterConfig(folder=folder, requests_per_second=requests, bytes_per_second=bytes_)
    patient = {"read_seconds": 15.0, "deadline_seconds": 120.0, "connect_seconds": 5.0}
    backoff = {"first_backoff_seconds": 0.2, "longest_backoff_seconds": 20.0}
    return make_store(service, folder, limiter=limiter, **patient, **backoff)


def _slowest_second(tenths: list[list[float]]) -> float:
    """Objects served in the slowest of the seconds that readers ran for, without the first, in which they start."""
    first = int(tenths[0][0]) + 10
    seconds = [0.0] * (int(ALONE_SECONDS) - 1)
    for tenth in tenths:
        place = (int(tenth[0]) - first) // 10
        if 0 <= place < len(seconds):
            seconds[place] += tenth[1]
    return max(1.0, min(seconds))


def _read(
    service: OssService, store: OssStore, seconds: float, length: int, data: bytes
) -> tuple[float, int, list[list[float]], list[Read]]:
    """(objects served a second, requests refused, the service's tenths of seconds, what readers say)."""
    service.forget()
    started = time.monotonic()
    reads = in_processes(
        READERS, read_for, seconds + 60, store=store, seconds=seconds, name="x.tar", length=length, data=data
    )
    tenths = service.state()["tenths"]
    served, refused, _ = served_between(tenths, started, started + seconds)
    return served / seconds, refused, tenths, reads


def killed_readers(kills: int = 20) -> dict[str, float]:
    """Kill processes that do nothing but go through the limiter, and see whether the others still can."""
    with oss_service() as (_, folder):
        config = LimiterConfig(folder=f"{folder}/kill", requests_per_second=1e6, start=1.0)
        limiter = NodeLimiter("killed", config)
        context = multiprocessing.get_context("fork")
        chosen = random.Random(0)
        longest = 0.0
        workers: list[Any] = []
        for _ in range(kills):
            while len(workers) < 4:
                workers.append(context.Process(target=_go_through, args=(limiter,), daemon=True))
                workers[-1].start()
            time.sleep(chosen.uniform(0.001, 0.03))
            killed = workers.pop(0)
            os.kill(killed.pid, signal.SIGKILL)
            killed.join(timeout=10)
            started = time.monotonic()
            limiter.acquire(1)
            longest = max(longest, time.monotonic() - started)
        for worker in workers:
            worker.kill()
            worker.join(timeout=10)
        rate = limiter.rates[0]
    return {"longest wait": longest, "share of the rate lost": 1 - rate / 1e6}


def _go_through(limiter: NodeLimiter) -> None:
    while True:
        limiter.acquire(100)
        limiter.served(100, 0.001, delayed=False)


def _at_once(barrier: Any, *arguments: Any) -> None:
    barrier.wait(60)
    read_for(*arguments)


def storm(seconds: float = 6.0) -> dict[str, float]:
    """Readers that are refused whatever they ask: how many requests the service still gets."""
    data = bytes(100_000)
    with oss_service() as (service, folder):
        service.put("set/x.tar", data)
        store = _store(service, folder, 5000)
        in_processes(4, read_for, 60, store=store, seconds=0.2, name="x.tar", length=LENGTH, data=data)
        service.forget()
        service.plan({"kind": "error", "code": "TotalQpsLimitExceeded", "times": -1})
        context = multiprocessing.get_context("fork")
        arguments = (store, 0, seconds, "x.tar", LENGTH, data)
        at_once = context.Barrier(READERS + 1)
        readers = [context.Process(target=_at_once, args=(at_once, *arguments), daemon=True) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        at_once.wait(60)
        time.sleep(seconds)
        for reader in readers:
            reader.kill()
            reader.join(timeout=10)
        tenths = [tenth[2] for tenth in service.state()["tenths"]]
    return {"requests": sum(tenths), "most in a tenth of a second": max(tenths[10:], default=0)}
