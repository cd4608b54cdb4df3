"""What a store counted in this process: for metrics, and to be summed over processes."""

import math
import threading
from dataclasses import dataclass, fields

_FIRST_SECONDS = 0.001
_STEP = 2**0.25  # between the bounds of two latency counts: percentiles are at most a fifth too high
NUM_LATENCIES = 72  # the last bound is 220 s


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """Counts since the process opened the store."""

    requests: int = 0
    bytes: int = 0
    """Of bodies, those of broken ones included."""
    retries: int = 0
    rejections: int = 0
    """Answers that said that the rate was too high."""
    resumed: int = 0
    """Bodies that broke off and were continued where they had come to."""
    renewed: int = 0
    """Changes of keys because the service refused those before."""
    delayed: int = 0
    """Answers that the service says it held back."""
    read_seconds: float = 0.0
    """In requests and the pauses between them."""
    limiter_seconds: float = 0.0
    """Waiting for the node's budget."""
    latencies: tuple[int, ...] = (0,) * NUM_LATENCIES
    """Answers by seconds to their first byte, in classes that grow by a fifth."""

    def __add__(self, other: "StoreStats") -> "StoreStats":
        summed = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "latencies"
        }
        latencies = tuple(one + two for one, two in zip(self.latencies, other.latencies, strict=True))
        return StoreStats(**summed, latencies=latencies)

    def latency(self, share: float) -> float:
        """Seconds below which this share of the answers began; 0 before the first."""
        due = share * sum(self.latencies)
        for i, count in enumerate(self.latencies):
            due -= count
            if count and due <= 0:
                return _FIRST_SECONDS * _STEP**i
        return 0.0

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a log."""
        plain = {field.name: float(getattr(self, field.name)) for field in fields(self) if field.name != "latencies"}
        return plain | {"latency_p50": self.latency(0.5), "latency_p95": self.latency(0.95)}


class StoreMeter:
    """Counts for StoreStats. Safe for threads; a forked process begins with a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}
        self._latencies = [0] * NUM_LATENCIES

    def add(self, **amounts: float) -> None:
        """Add to the counts by the names of StoreStats."""
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] = self._sums.get(name, 0) + amount

    def add_latency(self, seconds: float) -> None:
        """Count an answer."""
        place = math.ceil(math.log(max(seconds, _FIRST_SECONDS) / _FIRST_SECONDS, _STEP))
        with self._lock:
            self._latencies[min(place, NUM_LATENCIES - 1)] += 1

    def stats(self) -> StoreStats:
        """The counts so far."""
        with self._lock:
            return StoreStats(**self._sums, latencies=tuple(self._latencies))  # type: ignore[arg-type]
