"""What the loopback server does wrong on demand, and how much it lets through."""

import asyncio
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field, replace

from tests.harness.oss_objects import Objects
from tests.harness.oss_wire import Answer, OssFault, Request

NOISE = b"Warning: proxy buffer is low, retrying upstream\n"


@dataclass
class Fault:
    """One fault, for requests that match, after `skip` of them and then `times` times (-1: for ever)."""

    kind: str
    method: str = "GET"
    key: str = ""
    """Part of the key; empty for all."""
    listing: bool = False
    skip: int = 0
    times: int = 1
    every: int = 1
    """One in so many of those that match."""
    status: int = 503
    code: str = "ServiceUnavailable"
    at: int = 0
    """Byte of the body at which it happens."""
    seconds: float = 0.0
    delay_ms: int = 0
    """Told in x-oss-qos-delay-time."""
    once: bool = False
    """What ends at a byte of an object where it struck before is spared: twice in a row is a shard that is damaged."""
    seen: int = 0
    done: int = 0
    struck: set[tuple[str, str]] = field(default_factory=set)

    def due(self, request: Request) -> bool:
        """Whether it strikes this request; counts it."""
        if request.method != self.method or self.key not in request.key or self.listing != (not request.key):
            return False
        self.seen += 1
        number = self.seen - self.skip
        if number < 1 or (number - 1) % self.every or self.done == self.times:
            return False
        place = request.key, request.headers.get("range", "").rpartition("-")[2]
        if self.once and place in self.struck:
            return False
        self.struck.add(place)
        self.done += 1
        return True


def spoil(fault: Fault, answer: Answer, request: Request, objects: Objects) -> Answer:
    """The answer after what a fault does to it. Raises OssFault where the fault is an error of the service."""
    if fault.kind == "error":
        raise OssFault(fault.status, fault.code, "planted")
    if fault.kind == "page":  # what a proxy between says, in no XML
        return Answer(fault.status, {"Content-Type": "text/html"}, b"<html><h1>Bad gateway</h1></html>")
    body = bytes(answer.body)
    if fault.kind == "flip":
        at = min(fault.at, len(body) - 1)
        answer.body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
    elif fault.kind == "text inside":
        answer.body = (body[: fault.at] + NOISE + body[fault.at :])[: len(body)]
    elif fault.kind == "text before":  # the length stays, so the rest runs into the next answer
        answer.body, answer.length = NOISE + body, len(body)
    elif fault.kind == "text longer":
        answer.body = body[: fault.at] + NOISE + body[fault.at :]
    elif fault.kind == "shorter":
        answer.body = body[: fault.at]
    elif fault.kind == "whole object":
        whole = objects.buckets[request.bucket][request.key].data
        answer.status, answer.body = 200, whole
        del answer.headers["Content-Range"]
    elif fault.kind == "other range":
        first, _, rest = answer.headers["Content-Range"].removeprefix("bytes ").partition("-")
        last, _, size = rest.partition("/")
        answer.headers["Content-Range"] = f"bytes {int(first) + 512}-{int(last) + 512}/{size}"
    elif fault.kind == "no range said":
        answer.headers["Content-Range"] = "bytes"
    elif fault.kind == "other crc":
        answer.headers["x-oss-hash-crc64ecma"] = "12345"
    elif fault.kind == "other etag":
        answer.headers["ETag"] = '"0123456789ABCDEF0123456789ABCDEF"'
    if fault.delay_ms:
        answer.headers["x-oss-qos-delay-time"] = str(fault.delay_ms)
    return answer


def spoil_upload(fault: Fault, request: Request) -> Request:
    """The request as it comes to be stored. Raises OssFault where it is refused, so that nothing is."""
    if fault.kind == "error":
        raise OssFault(fault.status, fault.code, "planted")
    if fault.kind == "flip sent" and request.body:
        at = min(fault.at, len(request.body) - 1)
        body = request.body[:at] + bytes([request.body[at] ^ 0x10]) + request.body[at + 1 :]
        return replace(request, body=body)
    return request


def replace_object(request: Request, objects: Objects) -> None:
    """Other bytes of the same length, as an overwritten object has."""
    stored = objects.buckets[request.bucket][request.key]
    objects.store(request.bucket, request.key, stored.data[::-1])


def cut(writer: asyncio.StreamWriter) -> None:
    """Let the end of a connection be a reset."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def send(fault: Fault | None, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
    """Send an answer as the fault has it; whether the connection lives on."""
    kind = fault.kind if fault else ""
    if fault is None or kind not in ("truncate", "replace", "reset", "stall", "drip", "silence"):
        writer.write(head)
        writer.write(body)
        await writer.drain()
        return True
    if kind != "silence":
        writer.write(head)
        writer.write(body[: fault.at])
        await writer.drain()
    if kind == "reset":
        cut(writer)
    elif kind in ("stall", "silence"):
        await asyncio.sleep(fault.seconds)
    elif kind == "drip":
        for at in range(fault.at, len(body)):
            writer.write(body[at : at + 1])
            await writer.drain()
            await asyncio.sleep(fault.seconds)
    return False


class Throttle:
    """Lets so many requests and bytes a second through; the rest is refused, or delayed, which may be told."""

    def __init__(self, requests: float, bytes_: float, delays: bool, told: bool, burst_seconds: float) -> None:
        self.rates = (requests, bytes_)
        self.delays = delays
        self.told = told
        self.burst = burst_seconds
        self.levels = [0.0, 0.0]  # how much is above what the past allows, in requests and bytes
        self.at = time.monotonic()

    def admit(self, nbytes: int, way: str = "Download") -> float:
        """Seconds by which a request is late. Raises OssFault if it is refused."""
        now = time.monotonic()
        passed, self.at = now - self.at, now
        late = 0.0
        for i, rate in enumerate(self.rates):
            if not rate:
                continue
            self.levels[i] = max(0.0, self.levels[i] - rate * passed)
            over = self.levels[i] / rate - self.burst
            if over > 0 and not self.delays:
                raise OssFault(503, ("TotalQpsLimitExceeded", f"{way}TrafficRateLimitExceeded")[i], "Slow down")
            late = max(late, over)
        for i, amount in enumerate((1, nbytes)):
            self.levels[i] += amount
        return late


class Timeline:
    """How many objects and bytes were served and how many requests refused, by tenths of a second."""

    def __init__(self) -> None:
        self.tenths: deque[list[float]] = deque(maxlen=6000)

    def add(self, served: int, refused: int, nbytes: int, late: float) -> None:
        """Count one request."""
        tenth = time.monotonic() // 0.1
        if not self.tenths or self.tenths[-1][0] != tenth:
            self.tenths.append([tenth, 0, 0, 0, 0.0])
        last = self.tenths[-1]
        last[1] += served
        last[2] += refused
        last[3] += nbytes
        last[4] += late
