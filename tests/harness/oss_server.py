"""`python -m tests.harness.oss_server`: an OSS service on the loopback for tests, in a process of its own.

It prints its port and ends with its standard input. A process of its own, because tests fork readers: they would
inherit its connections and keep them open when a fault closes them. What OSS has no words for is asked under /_control.
"""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections import Counter
from typing import Any

from tests.harness.oss_faults import Fault, Throttle, Timeline, cut, replace_object, send, spoil, spoil_upload
from tests.harness.oss_objects import Objects
from tests.harness.oss_signatures import Key, Keys
from tests.harness.oss_wire import Answer, OssFault, Request, error_answer, read_request

BUCKET = "shards"
ACCESS, SECRET = "LTAItest", "not-a-real-secret"


class Server:
    """All state of the service, used by one event loop."""

    def __init__(self) -> None:
        self.objects = Objects([BUCKET])
        self.keys = Keys({ACCESS: Key(SECRET)})
        self.faults: list[Fault] = []
        self.throttle: Throttle | None = None
        self.counts: Counter[str] = Counter()
        self.timeline = Timeline()
        self.log: list[dict[str, Any]] = []
        self.role_seconds = 3600.0
        self.role_delay = 0.0
        self._number = itertools.count(1)
        self._run = os.urandom(4).hex().upper()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.counts["connections"] += 1
        self.counts["open"] += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await read_request(reader)) is not None:
                if request.bucket == "_control":
                    answer = await self.control(request)
                    writer.write(answer.head("0") + answer.body)
                    await writer.drain()
                elif not await self.exchange(request, writer):
                    break
        self.counts["open"] -= 1
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async def exchange(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection lives on."""
        request_id = f"{self._run}{next(self._number):016X}"
        fault = next((fault for fault in self.faults if fault.due(request)), None)
        late = 0.0
        try:
            self.keys.check(request)
            is_upload = request.method in ("PUT", "POST")
            if is_upload and fault is not None:
                if fault.kind == "cut":
                    cut(writer)
                    return False
                request = spoil_upload(fault, request)
            if self.throttle is not None and request.key and is_upload:
                late = self.throttle.admit(len(request.body), "Upload")
            answer = self.objects.answer(request)
            self.counts["bytes uploaded"] += len(request.body) if request.method == "PUT" else 0
            if self.throttle is not None and request.key and not is_upload:
                late = self.throttle.admit(len(answer.body))
            if fault is not None:
                answer = spoil(fault, answer, request, self.objects)
        except OssFault as error:
            answer = error_answer(error, request_id, request.method == "HEAD")
            self.counts[f"refused {error.code}"] += 1
        self._count(request, answer, request_id, late)
        pause = max(late, fault.seconds if fault and fault.kind == "slow" else 0.0)
        if late > 0 and self.throttle is not None and self.throttle.told:
            answer.headers["x-oss-qos-delay-time"] = str(int(late * 1000))
        if pause > 0:
            await asyncio.sleep(pause)
        body = b"" if request.method == "HEAD" else bytes(answer.body)
        if fault is not None and answer.status < 300 and fault.at < len(body):
            self.counts[f"spoiled by {fault.kind}"] += 1
        lives = await send(fault, answer.head(request_id), body, writer)
        if fault is not None and fault.kind == "replace":
            replace_object(request, self.objects)
        return lives

    def _count(self, request: Request, answer: Answer, request_id: str, late: float) -> None:
        good = answer.status < 300
        kind = f"{request.method} {'object' if request.key else 'bucket'}"
        self.counts[f"{kind} {'served' if good else 'refused'}"] += 1
        self.counts["bytes"] += len(answer.body) if good else 0
        if request.method == "GET" and request.key:
            self.timeline.add(good, not good, len(answer.body) if good else 0, late)
        if len(self.log) < 2000:
            asked = ("range", "if-match", "user-agent")
            shown = {name: request.headers[name] for name in asked if name in request.headers}
            self.log.append({"kind": kind, "key": request.key, "status": answer.status, "id": request_id, **shown})

    async def control(self, request: Request) -> Answer:
        """What tests ask."""
        what, _, rest = request.key.partition("/")
        said: Any = {}
        if what == "object":
            said = {"etag": self.objects.store(BUCKET, rest, request.body).etag.strip('"')}
        elif what == "bytes":
            said = {"hex": self.objects.buckets[BUCKET][rest].data.hex()}
        elif what == "names":
            said = sorted(self.objects.buckets[BUCKET])
        elif what == "delete":
            del self.objects.buckets[BUCKET][rest]
        elif what == "role":
            said = await self._new_role_keys()
        elif what == "unfinished":
            said = [each.key for each in self.objects.uploads.values()]
        elif what == "state":
            faults = [{"kind": fault.kind, "done": fault.done} for fault in self.faults]
            said = {"counts": self.counts, "log": self.log, "tenths": list(self.timeline.tenths), "faults": faults}
        else:
            self._set(what, json.loads(request.body))
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    def _set(self, what: str, value: Any) -> None:
        if what == "faults":
            self.faults = [Fault(**fault) for fault in value]
        elif what == "throttle":
            self.throttle = Throttle(**value) if value else None
        elif what == "keys":
            self.keys.known = {access: Key(**key) for access, key in value.items()}
        elif what == "clock":
            self.keys.clock_offset = value
        elif what == "role-life":
            self.role_seconds, self.role_delay = value
        elif what == "forget":
            self.counts = Counter({"open": self.counts["open"]})
            self.timeline = Timeline()
            self.log = []
        else:
            raise ValueError(what)

    async def _new_role_keys(self) -> dict[str, str]:
        """Temporary keys in the form that the metadata service of ECS has."""
        self.counts["role keys given"] += 1
        await asyncio.sleep(self.role_delay)
        now = time.time()
        access = f"STS.{next(self._number)}"
        self.keys.known[access] = Key(f"secret of {access}", f"token of {access}", now + self.role_seconds)
        key = self.keys.known[access]
        form = "%Y-%m-%dT%H:%M:%SZ"
        return {
            "Code": "Success",
            "AccessKeyId": access,
            "AccessKeySecret": key.secret,
            "SecurityToken": key.token,
            "Expiration": time.strftime(form, time.gmtime(now + self.role_seconds)),
            "LastUpdated": time.strftime(form, time.gmtime(now)),
        }


async def main() -> None:
    """Serve until standard input ends."""
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    os._exit(0)  # asyncio would tell of every connection that is still open


if __name__ == "__main__":
    asyncio.run(main())
