"""Objects read from the loopback service through the real oss2 client, with and without faults."""

import contextlib
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import MissingObject, ShardFault, StoreError
from data.store.config import LimiterConfig, OssConfig
from data.store.oss import OssStore
from data.store.store import StoredObject, open_store
from tests.harness.oss_readers import in_processes
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService

DATA = np.random.default_rng(0).bytes(200_000)
PATIENT = {"read_seconds": 20.0, "deadline_seconds": 60.0}
"""A busy host may take its time for a whole answer, and a try more would be counted."""
BACKOFF = {"first_backoff_seconds": 0.01, "longest_backoff_seconds": 0.05}
Open = Callable[..., OssStore]


@pytest.fixture(scope="module")
def started() -> Iterator[OssService]:
    service = OssService()
    yield service
    service.stop()


@pytest.fixture
def service(started: OssService, monkeypatch: pytest.MonkeyPatch) -> OssService:
    """Fresh objects, keys and counts, no faults."""
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OSS_SESSION_TOKEN", raising=False)
    started.plan()
    started.keys({ACCESS: {"secret": SECRET}})
    started.clock(0)
    started.put("set/a.tar", DATA)
    started.forget()
    return started


@pytest.fixture
def opened(service: OssService, tmp_path: Path) -> Open:
    def make(**changes: Any) -> OssStore:
        limiter = LimiterConfig(folder=str(tmp_path / "limits"), requests_per_second=5000)
        config = OssConfig(**{"endpoint": service.endpoint, "limiter": limiter, **PATIENT, **BACKOFF, **changes})
        store = open_store("oss://shards/set", config)
        assert isinstance(store, OssStore)
        return store

    return make


def test_a_store_lists_one_level_and_reads_ranges(service: OssService, opened: Open) -> None:
    etags = {name: service.put(f"set/{name}", b"0123456789") for name in ("b c+\u00fc.tar", "c.txt", "below/d.tar")}
    store = opened()
    found = store.list(".tar")
    assert [each.name for each in found] == ["a.tar", "b c+\u00fc.tar"]
    assert found[1] == StoredObject(name="b c+\u00fc.tar", size=10, etag=etags["b c+\u00fc.tar"])
    assert store.size("a.tar") == len(DATA)
    assert store.read_range("a.tar", 7, 1000, found[0].etag) == DATA[7:1007]
    assert store.read_range("a.tar", len(DATA) - 5, 50) == DATA[-5:]
    assert store.read_range("a.tar", len(DATA), 50) == b"" == store.read_range("a.tar", 3, 0)
    assert store.read_range("b c+\u00fc.tar", 8, 5) == b"89"
    assert service.state()["log"][2]["range"] == "bytes=7-1006"
    assert "AuthV4" not in store.where("a.tar") and store.where("a.tar").startswith("oss://shards/set/a.tar (request ")


def test_a_list_of_many_pages_is_whole(service: OssService, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{i:02}.tar" for i in range(23)]
    for name in names:
        service.put(f"set/pages/{name}", b"x")
        service.put(f"set/pages/{name}/inner", b"x")
    monkeypatch.setattr("data.store.oss._PAGE", 5)
    store = OssStore("oss://shards/set/pages/", opened().config)
    assert [each.name for each in store.list("")] == names
    assert service.counts["GET bucket served"] > 5


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "error", "code": "TotalQpsLimitExceeded"},
        {"kind": "error", "status": 429, "code": "QpsLimitExceeded"},
        {"kind": "page", "status": 502},
        {"kind": "truncate", "at": 1000},
        {"kind": "reset", "at": 1000},
        {"kind": "stall", "at": 1000, "seconds": 9},
        {"kind": "silence", "seconds": 9},
        {"kind": "drip", "at": 1000, "seconds": 0.02},
        {"kind": "whole object"},
        {"kind": "other range"},
        {"kind": "no range said"},
        {"kind": "shorter", "at": 100},
        {"kind": "text longer", "at": 50},
        {"kind": "slow", "seconds": 0.2, "delay_ms": 100},
    ],
    ids=lambda fault: fault["kind"],
)
def test_a_fault_that_passes_is_not_seen(service: OssService, opened: Open, fault: dict[str, Any]) -> None:
    hangs = fault["kind"] in ("stall", "silence", "drip")
    store = opened(read_seconds=0.5) if hangs else opened()
    service.plan({**fault, "times": 2})
    assert store.read_range("a.tar", 500, 150_000) == DATA[500:150_500]
    counts = service.counts
    tries = counts["GET object served"] + counts.get("GET object refused", 0)
    assert tries == (1 if fault["kind"] == "slow" else 3) or (hangs and tries > 3)


def test_a_broken_body_goes_on_where_it_broke_and_asks_for_the_same_object(service: OssService, opened: Open) -> None:
    etag = service.put("set/a.tar", DATA)
    service.plan({"kind": "truncate", "at": 60_000}, {"kind": "reset", "at": 10_000})
    store = opened()
    assert store.read_range("a.tar", 100, 100_000) == DATA[100:100_100]
    log = [entry for entry in service.state()["log"] if entry["kind"].startswith("GET object")]
    assert [entry["range"] for entry in log][:2] == ["bytes=100-100099", "bytes=60100-100099"]
    assert "if-match" not in log[0] and {entry["if-match"] for entry in log[1:]} == {f'"{etag}"'}
    assert store.stats().resumed == len(log) - 1 == 2


@pytest.mark.parametrize("fault", [{"kind": "replace", "at": 100}, {"kind": "other etag"}], ids=["replaced", "lied"])
def test_a_changed_object_is_fatal(service: OssService, opened: Open, fault: dict[str, Any]) -> None:
    etag = opened().list(".tar")[0].etag
    service.plan(fault)
    with pytest.raises(
        ShardFault, match=rf"a\.tar\[10:5010\] has changed.* etag {etag}, now etag [0-9A-F]+, request \w"
    ):
        opened().read_range("a.tar", 10, 5000, etag)


def test_what_cannot_be_read_says_so_with_its_request(service: OssService, opened: Open) -> None:
    store = opened()
    with pytest.raises(
        MissingObject, match=r"set/b\.tar\[0:9\]: there is no such object \(status 404 NoSuchKey, request \w"
    ):
        store.read_range("b.tar", 0, 9)
    with pytest.raises(FileNotFoundError, match="no such object"):
        store.size("b.tar")
    service.plan({"kind": "error", "status": 403, "code": "AccessDenied"})
    with pytest.raises(StoreError, match=r"\[0:9\]: status 403 AccessDenied, request \w+; allow this key"):
        store.read_range("a.tar", 0, 9)
    service.clock(3600)
    with pytest.raises(StoreError, match=r"RequestTimeTooSkewed, request \w+; set the clock .* 20\d\d-"):
        store.read_range("a.tar", 0, 9)
    with pytest.raises(StoreError, match="NoSuchBucket"):
        service.clock(0)
        OssStore("oss://other-bucket/x", store.config).list("")


def test_what_never_ends_ends_at_the_deadline(service: OssService, opened: Open) -> None:
    service.plan({"kind": "drip", "at": 0, "seconds": 0.05, "times": -1})
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"given up after \d+ tries in 3 s; the last: .*request \w"):
        opened(read_seconds=0.5, deadline_seconds=3.0).read_range("a.tar", 0, 100_000)
    assert time.monotonic() - started < 60


def test_secrets_are_never_shown(
    service: OssService, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OSS_ACCESS_KEY_SECRET", "hidden-secret")
    monkeypatch.setenv("OSS_SESSION_TOKEN", "hidden-token")
    caplog.set_level(logging.DEBUG)
    store = opened()
    with pytest.raises(StoreError, match="SignatureDoesNotMatch") as caught:  # the answer quotes the token
        store.read_range("a.tar", 0, 9)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(store) + repr(store.config)
    shown += repr(vars(store)) + repr(vars(store._requests)) + repr(store._requests._keys.get_credentials())
    assert "hidden" not in shown


def test_connections_are_reused_and_not_more_than_allowed(service: OssService, opened: Open) -> None:
    store = opened(connections=3)
    service.plan({"kind": "error", "every": 5, "times": -1})
    before = service.counts["connections"]
    threads = [
        threading.Thread(target=lambda: [store.read_range("a.tar", i, 50) for i in range(12)]) for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    counts = service.counts
    assert counts["GET object served"] == 120 and counts["GET object refused"] >= 20
    assert counts["connections"] - before <= 3 + 3  # and one for each question about the counts


def read_and_count(seed: int, store: OssStore) -> tuple[bool, int]:
    return store.read_range("a.tar", seed, 5000) == DATA[seed : seed + 5000], store.stats().requests


def test_a_store_goes_through_fork_and_pickle(service: OssService, opened: Open) -> None:
    store = opened(read_seconds=20.0)
    store.read_range("a.tar", 0, 10)
    assert in_processes(4, read_and_count, 120, store=store) == [(True, 1)] * 4
    assert store.stats().requests == 1
    again = pickle.loads(pickle.dumps(store))
    assert again.read_range("a.tar", 0, 10) == DATA[:10] and SECRET not in repr(pickle.dumps(store))


def test_a_read_that_fails_leaves_no_connection_behind(service: OssService, opened: Open) -> None:
    before = connections(service.port)
    store = opened(read_seconds=0.5, deadline_seconds=3.0)
    service.plan({"kind": "stall", "at": 10, "seconds": 30, "times": -1})
    with pytest.raises(StoreError, match="given up"):
        store.read_range("a.tar", 0, 9000)
    assert connections(service.port) <= before


def connections(port: int) -> set[str]:
    """Of this process, to a port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    known = {f"socket:[{line[9]}]" for line in lines if line[2].endswith(f":{port:04X}")}
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return found & known
