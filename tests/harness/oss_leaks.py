"""What readers of object storage leave behind or let out: sockets, processes, words on stderr, secrets."""

import io
import logging
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from data.store.oss import OssStore
from tests.harness.oss_readers import in_processes
from tests.harness.oss_samples import Outcome, Samples, read_all, store_samples
from tests.harness.oss_service import make_store, oss_service

SECRET_PARTS = ("hidden-secret", "hidden-token")


def forked_readers(processes: int = 8) -> dict[str, float]:
    """Processes forked off one that has open connections, reading at once."""
    with oss_service() as (service, folder):
        samples = store_samples(service, "set")
        store = make_store(service, folder, read_seconds=10.0, deadline_seconds=30.0)
        read_all(store, samples)
        service.forget()
        outcomes = in_processes(processes, _read, 60.0, store=store, samples=samples)
        counts = service.counts
    asked = counts["GET object served"] + counts.get("GET object refused", 0)
    return {
        "lost": sum(outcome.lost + bool(outcome.error) for outcome in outcomes),
        "repeated": sum(outcome.repeated for outcome in outcomes),
        "other bytes": sum(outcome.other for outcome in outcomes),
        "requests beyond one a sample": abs(asked - processes * len(samples.data))
        + abs(sum(outcome.stats.requests for outcome in outcomes) - asked),
    }


def _read(seed: int, store: OssStore, samples: Samples) -> Outcome:
    return read_all(store, samples)


def left_behind(stall: float = 2.0) -> dict[str, float]:
    """Readers that end or are ended while a body comes, in each of which the service pauses for so many seconds."""
    with oss_service() as (service, folder), tempfile.TemporaryFile() as noise:
        samples = store_samples(service, "set")
        store = make_store(service, folder, read_seconds=5.0)
        service.plan({"kind": "stall", "at": 100, "seconds": stall, "skip": 8, "times": -1})
        context = multiprocessing.get_context("fork")
        readers = [context.Process(target=_stop_early, args=(store, samples, noise.fileno())) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers[:2]:
            reader.join(timeout=60)
        for reader in readers[2:]:
            reader.terminate()
            reader.join(timeout=60)
        end = time.monotonic() + 60  # the service sees who is gone once it has come through its stalls
        while (state := service.counts)["open"] > 1 and time.monotonic() < end:
            time.sleep(0.1)
        noise.seek(0)
        return {
            "bytes of noise": len(noise.read()),
            "connections left": state["open"] - 1,
            "processes left": sum(reader.is_alive() for reader in readers),
        }


def _stop_early(store: OssStore, samples: Samples, noise: int) -> None:
    """Begin to read in a thread, as a loader does, and end."""
    os.dup2(noise, 2)
    thread = threading.Thread(target=read_all, args=(store, samples), daemon=True)
    thread.start()
    time.sleep(0.7)
    sys.exit(0)


def shown_secrets() -> dict[str, float]:
    """Let keys be refused in every way, with all logs on, and look for them in what is shown."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    shown: list[str] = []
    missing = 0
    try:
        with oss_service() as (service, folder):
            service.put("set/a.tar", bytes(1000))
            for path in _key_files(Path(folder)):
                store = make_store(service, folder, credentials=f"file:{path}", deadline_seconds=1.0)
                shown += [repr(store), str(vars(store)), repr(pickle.dumps(store))]
                try:
                    store.read_range("a.tar", 0, 10)
                    missing += 1
                except Exception:
                    shown.append(traceback.format_exc())
                shown.append(str(vars(store._requests)))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    shown.append(told.getvalue())
    return {
        "places that show a secret": sum(part in text for text in shown for part in SECRET_PARTS),
        "errors that did not come": missing,
    }


def _key_files(folder: Path) -> list[Path]:
    """A wrong secret, whose refusal quotes the token; an unknown key; a file that is cut in the middle of a secret."""
    contents = (
        '{"AccessKeyId": "LTAItest", "AccessKeySecret": "hidden-secret", "SecurityToken": "hidden-token"}',
        '{"AccessKeyId": "STS.9", "AccessKeySecret": "hidden-secret", "SecurityToken": "hidden-token"}',
        '{"AccessKeyId": "STS.9", "AccessKeySecret": "hidden-secret", "Sec',
    )
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"secret-{number}")
        paths[-1].write_text(content)
    return paths
