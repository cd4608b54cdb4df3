"""One limiter for all processes of a node: budgets of requests and bytes that follow what the service answers.

The state is a small file that every process maps, changed under `flock`, which the kernel gives back when its holder
dies. Nothing is ever handed out that would have to be returned, so a killed process leaves nothing stuck. Every field
is valid by itself at any time: a process killed between two stores does no harm.

A rate falls to `decrease` times what it was or, if it held nobody back, what was really served: one far above the limit
of the service is then found out in one step. It grows only while it holds somebody back: doubling each second until
something is first refused, then evenly.

Latency that doubles is taken for a queue of ours at the service: a cut, time for the queue to drain, and if that does
not help another. After a few the rate was not the reason, it is given back, and the latency is how things are.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import math
import mmap
import os
import random
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data.store.config import LimiterConfig

HOLD_SECONDS = 0.5  # between two cuts: the answers to what was sent before the first say nothing new
BURST_SECONDS = 0.1
RISING = 2.0
_VERSION = 2.0
_WINDOW = 64  # latencies
_SPAN_SECONDS = 0.5
_FADING = 0.95
_DRIFT = 1.1  # of what is usual, a window at most
_TRIES = 4  # cuts for latency, before the rate is given back
_RETRIES_PER_SECOND = 1.0
_MOST_RETRIES = 20.0


class _Bucket(ctypes.Structure):
    _fields_ = (
        ("budget", ctypes.c_double),
        ("rate", ctypes.c_double),
        ("tokens", ctypes.c_double),  # below zero: what those who wait have taken
        ("bound", ctypes.c_double),  # whether somebody waited since tokens were last above zero
        ("cut_at", ctypes.c_double),
        ("before", ctypes.c_double),  # the rate before the first cut for a latency that is still high
        ("served", ctypes.c_double),  # in the span that is going on
        ("peak", ctypes.c_double),  # a second, in the fastest of the spans before, which fades
    )


class _State(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_double),
        ("at", ctypes.c_double),  # time.monotonic(), which all processes of a boot share
        ("measured_at", ctypes.c_double),  # when the span began
        ("retries", ctypes.c_double),
        ("requests", _Bucket),
        ("bytes", _Bucket),
        ("usual", ctypes.c_double * 2),  # median and 95th percentile of latency, 0 before the first
        ("tries", ctypes.c_double),  # cuts since latency was usual
        ("drained_at", ctypes.c_double),  # when the last of them must show
        ("count", ctypes.c_double),
        ("latencies", ctypes.c_double * _WINDOW),
    )


class NodeLimiter:
    """The limiter of one bucket at one endpoint. Safe for threads and processes, and after fork.

    Raises ValueError if the folder belongs to somebody else.
    """

    def __init__(self, what: str, config: LimiterConfig) -> None:
        self._config = config
        name = hashlib.blake2b(what.encode(), digest_size=12).hexdigest()
        self.path = shared_folder(config.folder) / f"limit-{name}"
        self._state = _State()
        self._inode = -1

    def acquire(self, nbytes: int) -> float:
        """Wait until a request for so many bytes may be sent; returns the seconds waited.

        The place in the queue is taken at once, as a debt, and then slept off: who comes later waits longer.
        """
        with self._locked() as state:
            wait = 0.0
            for bucket, amount in ((state.requests, 1.0), (state.bytes, float(nbytes))):
                bucket.tokens -= amount
                if bucket.tokens < 0:
                    bucket.bound = 1.0
                    wait = max(wait, -bucket.tokens / bucket.rate)
            state.retries = min(_MOST_RETRIES, state.retries + self._config.retry_share)
        if wait > 0:
            time.sleep(wait)
        return wait

    def may_retry(self) -> bool:
        """Take one retry out of the node's budget, if there is one left."""
        with self._locked() as state:
            if state.retries < 1:
                return False
            state.retries -= 1
            return True

    def served(self, nbytes: int, latency: float, delayed: bool) -> None:
        """Tell of an answer: seconds to its first byte, and whether the service says that it was held back."""
        with self._locked() as state:
            state.requests.served += 1
            state.bytes.served += nbytes
            state.latencies[int(state.count) % _WINDOW] = latency
            state.count += 1
            if delayed:
                self._cut(state.requests, state.at)
                self._cut(state.bytes, state.at)
            if state.count % _WINDOW == 0:
                self._follow_latency(state)

    def rejected(self, code: str) -> None:
        """Tell of a request that was refused for its rate; the code says whether of requests or of bytes."""
        with self._locked() as state:
            state.tries = 0
            if "Traffic" not in code:
                self._cut(state.requests, state.at)
            if "Qps" not in code:
                self._cut(state.bytes, state.at)

    @property
    def rates(self) -> tuple[float, float]:
        """Requests and bytes a second that are allowed now."""
        with self._locked() as state:
            return state.requests.rate, state.bytes.rate

    def _follow_latency(self, state: _State) -> None:
        """Median and 95th percentile have to rise: a busy host delays some answers, a slow service all of them."""
        ordered = sorted(state.latencies)
        now = [ordered[int(share * _WINDOW)] for share in (0.5, 0.95)]
        usual = [before or at for before, at in zip(state.usual, now, strict=True)]
        buckets = (state.requests, state.bytes)
        if now[0] <= self._config.slow_seconds or any(at <= RISING * b for at, b in zip(now, usual, strict=True)):
            state.tries = 0
            state.usual[:] = [min(max(at, b / _DRIFT), b * _DRIFT) for at, b in zip(now, usual, strict=True)]
        elif state.tries and state.at < state.drained_at:
            return
        elif state.tries == _TRIES:
            state.tries = 0
            state.usual[:] = now
            for bucket in buckets:
                bucket.rate = max(bucket.rate, bucket.before)
        else:
            for bucket in buckets:
                bucket.before = bucket.before if state.tries else bucket.rate
                self._cut(bucket, state.at)
            state.tries += 1
            # A queue of `now` seconds at a service that is asked for `decrease` of what it can do; and once more as
            # long, for the latencies looked at next are to be later ones.
            state.drained_at = state.at + 2 * now[0] / (1 - self._config.decrease)

    def _cut(self, bucket: _Bucket, now: float) -> None:
        if now - bucket.cut_at < HOLD_SECONDS:
            return
        used = bucket.rate
        if not bucket.bound:
            # Not the rate was the limit, but the readers. What they did in the last seconds, and not below a quarter:
            # when the host paused, little was served.
            span = now - self._state.measured_at
            speed = max(bucket.peak, bucket.served / span if span > _SPAN_SECONDS / 2 else 0.0)
            used = min(bucket.rate, max(speed, bucket.rate / 4))
        bucket.rate = max(self._config.floor * bucket.budget, self._config.decrease * used)
        bucket.tokens = min(bucket.tokens, 0.0)
        bucket.cut_at = now

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_State]:
        # A descriptor of its own for each entry, since the lock belongs to the open file, which threads would share.
        # And unlocked by name: a child forked by another thread just now holds a copy that it may never close.
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._map(os.fstat(descriptor))
            self._advance(time.monotonic())
            yield self._state
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _map(self, locked: os.stat_result) -> None:
        """Map the file at first, and anew if a cleaner of temporary files has taken it away meanwhile."""
        if locked.st_ino == self._inode:
            return
        descriptor = self._open()  # mmap keeps a copy, which must not be one of the lock's
        try:
            if locked.st_size < ctypes.sizeof(_State):
                os.ftruncate(descriptor, ctypes.sizeof(_State))
            self._state = _State.from_buffer(mmap.mmap(descriptor, ctypes.sizeof(_State)))
            self._inode = os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)

    def _advance(self, now: float) -> None:
        state, config = self._state, self._config
        if not self._is_sound(now):
            self._reset(now)
        passed, state.at = now - state.at, now
        state.retries = min(_MOST_RETRIES, state.retries + _RETRIES_PER_SECOND * passed)
        span = now - state.measured_at
        for bucket, budget in (
            (state.requests, config.requests_per_second),
            (state.bytes, config.bytes_per_second),
        ):
            bucket.budget = budget
            if bucket.bound:
                grown = config.increase * budget if bucket.cut_at else bucket.rate * math.log(2)
                bucket.rate += grown * min(passed, 1.0)
            bucket.rate = min(bucket.rate, budget)
            bucket.tokens += bucket.rate * passed
            if bucket.tokens >= 0:
                bucket.bound = 0.0
            bucket.tokens = min(bucket.tokens, bucket.rate * BURST_SECONDS)
            if span >= _SPAN_SECONDS:
                bucket.peak = max(bucket.served / span, _FADING * bucket.peak)
                bucket.served = 0.0
        if span >= _SPAN_SECONDS:
            state.measured_at = now

    def _is_sound(self, now: float) -> bool:
        """Whether the file is of this version and this boot, and holds numbers."""
        state = self._state
        values = [state.at, state.retries, *state.usual, state.requests.tokens, state.bytes.tokens]
        rates = [state.requests.rate, state.bytes.rate]
        return (
            state.version == _VERSION
            and state.at <= now
            and state.measured_at <= now
            and all(math.isfinite(value) for value in values)
            and all(math.isfinite(rate) and rate > 0 for rate in rates)
        )

    def _reset(self, now: float) -> None:
        state = self._state
        ctypes.memset(ctypes.addressof(state), 0, ctypes.sizeof(state))
        state.at = state.measured_at = now
        state.retries = _MOST_RETRIES
        state.requests.rate = self._config.start * self._config.requests_per_second
        state.bytes.rate = self._config.start * self._config.bytes_per_second
        state.version = _VERSION


def full_jitter(attempt: int, first: float, longest: float) -> float:
    """Seconds to wait before retry `attempt` (from 0): uniform up to a doubling bound, so that no two come together."""
    return random.uniform(0.0, min(longest, first * 2.0 ** min(attempt, 30)))


def shared_folder(folder: str | None) -> Path:
    """A folder that only this user may enter, for what processes of a node share. Raises ValueError if it is not so."""
    path = Path(folder) if folder is not None else Path(tempfile.gettempdir()) / f"triptych-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValueError(
            f"{path} must be a folder of user {os.getuid()} that nobody else may enter (mode 700), it has mode "
            f"{stat.S_IMODE(found.st_mode):o} and owner {found.st_uid}; name another in oss.limiter.folder"
        )
    return path
