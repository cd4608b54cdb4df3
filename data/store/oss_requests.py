"""Requests to one bucket: what oss2 sends, kept within budget and deadline, tried again where that can help."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from logging import WARNING, getLogger
from typing import TypeVar

import oss2
from requests.structures import CaseInsensitiveDict

from data.errors import ExistingObject, MissingObject, ShardFault, StoreError
from data.store.config import OssConfig
from data.store.credentials import KeyProvider, open_keys
from data.store.limiter import NodeLimiter, full_jitter
from data.store.oss_errors import REQUEST_ERRORS, BrokenBody, RequestFault, classify
from data.store.stats import StoreMeter

Result = TypeVar("Result")
_NO_ETAG: Callable[[], str | None] = lambda: None  # noqa: E731


@dataclass
class Here:
    """What a process has for itself. Sockets and counts must not be those of its parent."""

    pid: int
    bucket: oss2.Bucket
    free: threading.BoundedSemaphore
    """One for each connection: requests itself opens as many as there are threads, and throws away those above."""
    meter: StoreMeter = field(default_factory=StoreMeter)


class Call:
    """One request under way."""

    def __init__(self, here: Here, end: float) -> None:
        self.bucket = here.bucket
        self.meter = here.meter
        self.started = time.monotonic()
        self._idle = waited_for_cpu()
        self.latency: float | None = None
        self.delayed = False
        self.request_id = "none"
        self._end = end

    def answered(self, headers: CaseInsensitiveDict, request_id: str) -> None:
        """The head of the answer is there, its body is still to come."""
        # Decoders keep every CPU of a node busy; that the reader had to wait for one says nothing of the service.
        self.latency = max(0.0, time.monotonic() - self.started - (waited_for_cpu() - self._idle))
        self.request_id = request_id or "none"
        told = str(headers.get("x-oss-qos-delay-time", "0"))
        self.delayed = told.isdecimal() and int(told) > 0

    def check_deadline(self) -> None:
        """Raises BrokenBody when the time for all tries is over."""
        if time.monotonic() > self._end:
            raise BrokenBody("the deadline passed while the body came", self.request_id)


def waited_for_cpu() -> float:
    """Seconds that this thread was ready to run and no CPU was free; 0 where the kernel does not tell (15 us)."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class OssRequests:
    """Runs requests to a bucket. One limiter a node, one session a process, one connection a thread at a time."""

    def __init__(self, bucket: str, config: OssConfig, budget: str = "") -> None:
        """`budget` names a limiter of its own, apart from that of all who read."""
        # Below this oss2 writes headers, and with them the security token.
        getLogger("oss2").setLevel(WARNING)
        self._name = bucket
        self._config = config
        self._keys: KeyProvider = open_keys(config.credentials, config.limiter.folder)
        self._limiter = NodeLimiter(f"{bucket} {config.address} {os.getuid()}{budget}", config.limiter)
        self._last = threading.local()
        self._here = self._open()

    @property
    def here(self) -> Here:
        """This process's session and counts; new ones after a fork."""
        if self._here.pid != os.getpid():
            self._here = self._open()  # two threads may both do it; the session of one is then dropped unused
        return self._here

    @property
    def last_request_id(self) -> str:
        """Of this thread's last answer."""
        return getattr(self._last, "request_id", "none")

    def run(
        self,
        what: str,
        nbytes: int,
        attempt: Callable[[Call], Result],
        etag: Callable[[], str | None] = _NO_ETAG,
    ) -> Result:
        """The result of `attempt`, tried until it succeeds, can no longer, or the deadline passes.

        Args:
            what: object and range, for messages.
            nbytes: at most to come.
            attempt: sends one request; raises an error of REQUEST_ERRORS.
            etag: of the object that was asked for, for messages.
        """
        config, meter = self._config, self.here.meter
        end = time.monotonic() + config.deadline_seconds
        tries, renewed = 0, False
        while True:
            waited = self._limiter.acquire(nbytes)
            end += waited
            meter.add(requests=1, limiter_seconds=waited)
            keys = self._keys.get_credentials()
            with self._connection(what, end) as call:
                try:
                    result = attempt(call)
                    self._note(call, nbytes, getattr(result, "request_id", call.request_id))
                    return result
                except REQUEST_ERRORS as error:
                    fault = classify(error)
            self._note(call, 0, fault.request_id)
            tries += 1
            if fault.kind == "throttled":
                meter.add(rejections=1)
                self._limiter.rejected(fault.code)
            if fault.kind == "keys" and not renewed and self._keys.renew(keys):
                renewed = True
                meter.add(renewed=1)
                continue
            if fault.kind not in ("throttled", "transient"):
                raise self._fatal(what, fault, etag())
            if not self._pause(tries, end):
                raise StoreError(
                    f"{what}: given up after {tries} tries in {config.deadline_seconds:g} s; the last: {fault.text}, "
                    f"request {fault.request_id}; check the network and the service's state, or raise "
                    "oss.deadline_seconds"
                )
            meter.add(retries=1)

    @contextlib.contextmanager
    def _connection(self, what: str, end: float) -> Iterator[Call]:
        here = self.here
        if not here.free.acquire(timeout=max(0.0, end - time.monotonic())):
            raise StoreError(
                f"{what}: none of the {self._config.connections} connections of this process came free in "
                f"{self._config.deadline_seconds:g} s; raise oss.connections, or read with fewer threads"
            )
        try:
            yield Call(here, end)
        finally:
            here.free.release()

    def _note(self, call: Call, nbytes: int, request_id: str) -> None:
        """Count an answer, whether its body was any good or not."""
        took = time.monotonic() - call.started
        latency = took if call.latency is None else call.latency
        self._last.request_id = request_id
        call.meter.add(read_seconds=took, delayed=int(call.delayed))
        if nbytes or call.latency is not None:
            call.meter.add_latency(latency)
            self._limiter.served(nbytes, latency, call.delayed)

    def _pause(self, tries: int, end: float) -> bool:
        """Wait before the next try; whether there is time for one."""
        config = self._config
        pause = full_jitter(tries - 1, config.first_backoff_seconds, config.longest_backoff_seconds)
        while time.monotonic() + pause < end:
            time.sleep(pause)
            if self._limiter.may_retry():
                return True
            pause = full_jitter(tries, config.first_backoff_seconds, config.longest_backoff_seconds)
        return False

    def _fatal(self, what: str, fault: RequestFault, etag: str | None) -> Exception:
        told = f"{fault.text}, request {fault.request_id}"
        if fault.kind == "changed":
            return ShardFault(
                f"{what} has changed: it was indexed or begun with etag {etag}, now {told}; restore the object, or "
                "index it again if it was meant to change"
            )
        if fault.kind == "missing":
            return MissingObject(f"{what}: there is no such object ({told}); restore it, or correct the source's path")
        if fault.kind == "exists":
            return ExistingObject(f"{what}: there is such an object already ({told})")
        if fault.kind == "keys":
            return StoreError(
                f"{what}: the service refuses the keys from {self._keys.where} ({told}), and there are no newer ones; "
                "renew them and resume"
            )
        return StoreError(f"{what}: {told}" + (f"; {fault.cure}" if fault.cure else ""))

    def _open(self) -> Here:
        config = self._config
        session = oss2.Session(pool_size=config.connections)
        # Neither a proxy nor a .netrc of the environment: the latter would take the place of the signature.
        session.session.trust_env = False
        bucket = oss2.Bucket(
            oss2.ProviderAuthV4(self._keys),
            config.address,
            self._name,
            session=session,
            connect_timeout=(config.connect_seconds, config.read_seconds),
            enable_crc=False,  # of whole objects; samples have their own
            region=config.region,
        )
        return Here(pid=os.getpid(), bucket=bucket, free=threading.BoundedSemaphore(config.connections))
