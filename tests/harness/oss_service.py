"""The loopback service as tests hold it: start, fill, break, count, stop."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data.store.config import LimiterConfig, OssConfig
from data.store.oss import OssStore
from data.store.store import open_store
from tests.harness.oss_server import ACCESS, BUCKET, SECRET

ROOT = Path(__file__).resolve().parent.parent.parent


class OssService:
    """A running service. Its process ends with this one, however this one ends."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.harness.oss_server"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.role_url = f"{self.endpoint}/_control/role"
        self.environment = {"OSS_ACCESS_KEY_ID": ACCESS, "OSS_ACCESS_KEY_SECRET": SECRET}

    def put(self, name: str, data: bytes) -> str:
        """Store an object; its etag."""
        return self._ask(f"object/{name}", data)["etag"]

    def get(self, name: str) -> bytes:
        """The bytes of an object."""
        return bytes.fromhex(self._ask(f"bytes/{name}")["hex"])

    def names(self) -> list[str]:
        """Of all objects."""
        return list(self._ask("names"))

    def delete(self, name: str) -> None:
        """Take an object away."""
        self._ask(f"delete/{name}")

    def unfinished(self) -> list[str]:
        """Names of objects whose parts were never put together."""
        return list(self._ask("unfinished"))

    def put_folder(self, folder: Path, prefix: str, suffix: str = "") -> str:
        """Store the files of a folder and give the address of the place they lie in."""
        for path in sorted(folder.rglob("*" + suffix)):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"oss://{BUCKET}/{prefix}"

    def plan(self, *faults: dict[str, Any]) -> None:
        """Faults from now on, in place of those before; see oss_faults.Fault."""
        self._tell("faults", list(faults))

    def throttle(
        self,
        requests: float = 0,
        bytes_: float = 0,
        delays: bool = False,
        told: bool = True,
        burst_seconds: float = 0.25,
    ) -> None:
        """Let so much through a second, 0 for all of it."""
        rates = {"requests": requests, "bytes_": bytes_}
        self._tell("throttle", {**rates, "delays": delays, "told": told, "burst_seconds": burst_seconds})

    def keys(self, known: dict[str, dict[str, Any]]) -> None:
        """The access keys that hold from now on."""
        self._tell("keys", known)

    def clock(self, offset: float) -> None:
        """Seconds by which the service's clock is ahead."""
        self._tell("clock", offset)

    def role_life(self, seconds: float, delay: float = 0.0) -> None:
        """How long temporary keys hold, and how long it takes to give them out."""
        self._tell("role-life", [seconds, delay])

    def forget(self) -> None:
        """Count anew."""
        self._tell("forget", None)

    def state(self) -> dict[str, Any]:
        """`counts`, a `log` of the first 2,000, and `tenths` of seconds (time, served, refused, bytes, late)."""
        return self._ask("state")

    @property
    def counts(self) -> dict[str, int]:
        """How often what happened."""
        return self.state()["counts"]

    def stop(self) -> None:
        """End it; safe to call twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=30)

    def _tell(self, what: str, value: Any) -> None:
        self._ask(what, json.dumps(value).encode())

    def _ask(self, what: str, body: bytes = b"") -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"/_control/{quote(what)}", body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def oss_service() -> Iterator[tuple[OssService, str]]:
    """A service with keys in the environment, and a folder for the limiter."""
    before = {name: os.environ.get(name) for name in ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET")}
    service = OssService()
    os.environ.update(service.environment)
    try:
        with tempfile.TemporaryDirectory(prefix="triptych-limits-") as folder:
            yield service, folder
    finally:
        service.stop()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def make_store(service: OssService, folder: str, prefix: str = "set", **changes: Any) -> OssStore:
    """A store that gives up soon."""
    values = {
        "endpoint": service.endpoint,
        "limiter": LimiterConfig(folder=folder, requests_per_second=2000),
        "connect_seconds": 5.0,
        "read_seconds": 0.5,
        "deadline_seconds": 6.0,
        "first_backoff_seconds": 0.01,
        "longest_backoff_seconds": 0.1,
        **changes,
    }
    store = open_store(f"oss://shards/{prefix}", OssConfig(**values))
    assert isinstance(store, OssStore)
    return store


def served_between(tenths: list[list[float]], start: float, end: float) -> tuple[int, int, int]:
    """(objects served, requests refused, bytes) of whole tenths between two moments of time.monotonic()."""
    chosen = [tenth for tenth in tenths if start <= tenth[0] * 0.1 and (tenth[0] + 1) * 0.1 <= end]
    return (
        int(sum(tenth[1] for tenth in chosen)),
        int(sum(tenth[2] for tenth in chosen)),
        int(sum(tenth[3] for tenth in chosen)),
    )
