"""Cases 1 to 13 of object stores that users met, each injected into a pass over all samples."""

import re
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data.store.oss import OssStore
from tests.harness.oss_readers import in_processes
from tests.harness.oss_samples import Outcome, Samples, read_all, store_samples
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import make_store, oss_service

ALWAYS = -1
CRC_ONLY = ("flipped bit", "flipped at rest", "text inside", "text before")
"""Cases whose answers are right in every header."""


@dataclass(frozen=True, kw_only=True)
class FaultCase:
    """One way to be failed by object storage."""

    number: int
    injected: str
    faults: tuple[dict[str, Any], ...]
    fatal: tuple[str, ...] = ()
    """What the error has to say beside object, range and request; empty where no error may come."""
    seconds: float = 8.0
    """That the pass may take."""
    sent: float = 0.0
    """Seconds by which the service's clock is ahead."""


CASES = {
    "503 storm": FaultCase(
        number=1, injected="every 2nd request refused", faults=({"code": "TotalQpsLimitExceeded", "every": 2},)
    ),
    "429 storm": FaultCase(
        number=1, injected="every 2nd", faults=({"status": 429, "code": "QpsLimitExceeded", "every": 2},)
    ),
    "slow 200": FaultCase(
        number=2, injected="0.2 s late, told in the header", faults=({"kind": "slow", "seconds": 0.2, "delay_ms": 200},)
    ),
    "cut body": FaultCase(
        number=3, injected="every 2nd body cut", faults=({"kind": "truncate", "at": 1500, "every": 2},)
    ),
    "reset": FaultCase(number=3, injected="every 2nd body reset", faults=({"kind": "reset", "at": 2000, "every": 2},)),
    "flipped bit": FaultCase(
        number=4, injected="every 3rd body", faults=({"kind": "flip", "at": 1000, "every": 3, "times": 6},)
    ),
    "flipped at rest": FaultCase(
        number=4,
        injected="the same bit each time",
        faults=({"kind": "flip", "at": 1000, "skip": 4},),
        fatal=("ShardFault", "CRC32C"),
    ),
    "range ignored": FaultCase(
        number=5, injected="200 with the whole object", faults=({"kind": "whole object", "every": 3},)
    ),
    "range ignored for ever": FaultCase(
        number=5,
        injected="200 with the whole object, always",
        faults=({"kind": "whole object", "skip": 4},),
        fatal=("StoreError", "status 200", "given up"),
    ),
    "other range": FaultCase(
        number=5, injected="Content-Range of others", faults=({"kind": "other range", "every": 3},)
    ),
    "stall": FaultCase(
        number=6, injected="silence in the body", faults=({"kind": "stall", "at": 999, "seconds": 9.0, "times": 3},)
    ),
    "drip": FaultCase(
        number=6, injected="a byte each 20 ms", faults=({"kind": "drip", "at": 999, "seconds": 0.02, "times": 3},)
    ),
    "no answer": FaultCase(
        number=7, injected="connections that never answer", faults=({"kind": "silence", "seconds": 9.0, "times": 3},)
    ),
    "clock skew": FaultCase(
        number=9, injected="16 minutes", faults=(), sent=960.0, fatal=("StoreError", "RequestTimeTooSkewed", "NTP")
    ),
    "replaced": FaultCase(
        number=10,
        injected="in the middle of a body",
        faults=({"kind": "replace", "at": 700, "skip": 5, "times": 1},),
        fatal=("ShardFault", "indexed or begun with etag", "now etag"),
    ),
    "text inside": FaultCase(
        number=13, injected="same length", faults=({"kind": "text inside", "at": 800, "every": 3, "times": 6},)
    ),
    "text longer": FaultCase(
        number=13, injected="longer body", faults=({"kind": "text longer", "at": 800, "every": 3, "times": 6},)
    ),
    "text before": FaultCase(
        number=13, injected="runs into the next answer", faults=({"kind": "text before", "every": 3, "times": 6},)
    ),
}


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """A pass over all samples under a fault, and what the service saw of it."""

    outcome: Outcome
    seconds: float
    unasked: int
    """Requests after the first for a range that did not name the object's etag."""
    asked_again: int
    """Requests for the very range that the one before was for."""
    missing_words: int
    """Of what a fatal error has to say; all of them if none came, one if one came that may not."""
    miscounted: int
    """By how much the client's counts of requests and rejections differ from the service's."""


def run_case(name: str, run_length: int, **changes: Any) -> CaseResult:
    """Inject one fault and read everything, so many samples by one request. `changes` are of the store's config."""
    case = CASES[name]
    with oss_service() as (service, folder):
        samples = store_samples(service, "set")
        service.plan(*({"kind": "error", "times": ALWAYS, **fault} for fault in case.faults))
        service.clock(case.sent)
        started = time.monotonic()
        outcome = read_all(make_store(service, folder, **changes), samples, run_length)
        seconds = time.monotonic() - started
        state = service.state()
    counts = state["counts"]
    log = [entry for entry in state["log"] if entry["kind"].startswith("GET object")]
    asked = counts.get("GET object served", 0) + counts.get("GET object refused", 0)
    refused = sum(counts.get(f"refused {code}", 0) for code in ("TotalQpsLimitExceeded", "QpsLimitExceeded"))
    stats = outcome.stats
    return CaseResult(
        outcome=outcome,
        seconds=seconds,
        unasked=sum("if-match" not in entry for entry in log),
        asked_again=sum(one["range"] == two["range"] for one, two in pairwise(log)),
        missing_words=_missing_words(case, outcome.error),
        miscounted=abs(stats.requests - asked) + abs(stats.rejections - refused),
    )


def _missing_words(case: FaultCase, error: str) -> int:
    if not case.fatal:
        return int(bool(error))
    wanted = [*(re.escape(word) for word in case.fatal), r"s-00000\d\.tar\[\d+:\d+\]", r"request [0-9A-F]{16,}"]
    return sum(re.search(word, error) is None for word in wanted)


def expiring_tokens(processes: int = 8, life: float = 3.0, passes: int = 4) -> dict[str, float]:
    """Readers whose temporary keys end while they read, and how often new ones were fetched."""
    with oss_service() as (service, folder):
        service.role_life(life, 0.2)
        samples = store_samples(service, "set")
        store = make_store(service, folder, credentials=f"uri:{service.role_url}", deadline_seconds=60.0)
        started = time.monotonic()
        outcomes = in_processes(processes, _read_for, 60.0, store=store, samples=samples, seconds=life * passes)
        took = time.monotonic() - started
        counts = service.counts
    flat = [outcome for each in outcomes for outcome in each]
    return {
        "lost": sum(outcome.lost for outcome in flat),
        "repeated": sum(outcome.repeated for outcome in flat),
        "errors": sum(bool(outcome.error) for outcome in flat),
        # Renewed when 15 % of the life are left, which whole seconds in the answer may bring forward by one.
        "requests with keys that had ended": counts.get("refused SecurityTokenExpired", 0),
        "fetches beyond one a life": max(0.0, counts["role keys given"] - took / (0.85 * life - 1.0) - 1),
    }


def _read_for(seed: int, store: OssStore, samples: Samples, seconds: float) -> list[Outcome]:
    outcomes = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        outcomes.append(read_all(store, samples))
        time.sleep(0.1)
    return outcomes


def refused_tokens(processes: int = 8) -> dict[str, float]:
    """Keys that the service no longer takes before their end, in every process at once."""
    with oss_service() as (service, folder):
        samples = store_samples(service, "set")
        store = make_store(service, folder, credentials=f"uri:{service.role_url}", deadline_seconds=60.0)
        read_all(store, samples)
        service.keys({ACCESS: {"secret": SECRET}})
        service.forget()
        service.role_life(3600.0, 0.2)
        outcomes = in_processes(processes, _read_once, 60.0, store=store, samples=samples)
        counts = service.counts
    return {
        "lost": sum(outcome.lost + bool(outcome.error) for outcome in outcomes),
        "repeated": sum(outcome.repeated for outcome in outcomes),
        "fetches beyond one": abs(counts["role keys given"] - 1),
    }


def _read_once(seed: int, store: OssStore, samples: Samples) -> Outcome:
    return read_all(store, samples)


def connections_used(threads: int = 12) -> dict[str, float]:
    """Connections that were opened where every twelfth answer is an error, by more threads than connections."""
    with oss_service() as (service, folder):
        samples = store_samples(service, "set")
        service.plan({"kind": "error", "every": 12, "times": ALWAYS})
        store = make_store(service, folder, connections=4, read_seconds=10.0, deadline_seconds=60.0)
        before = service.counts["connections"]
        outcomes: list[Outcome] = []
        work = [threading.Thread(target=lambda: outcomes.append(read_all(store, samples))) for _ in range(threads)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join(timeout=120)
        opened = service.counts["connections"] - before - 1  # one is the question itself
    return {
        "connections": opened,
        "lost": sum(outcome.lost + bool(outcome.error) for outcome in outcomes) + threads - len(outcomes),
        "repeated": sum(outcome.repeated for outcome in outcomes),
    }
