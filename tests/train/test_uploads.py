"""A run's uploads: whose turn it is, what is held, what is tried again, and how long the end of a run waits."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.oss_service import OssService
from tests.train.test_saves import checkpoints, is_whole
from tests.train.toy_layouts import one
from tests.train.uploaded import make_commit, oss_of, remote_at
from train.checkpoint import commits
from train.checkpoint.remote import fetch_newest
from train.checkpoint.upload import Sent
from train.checkpoint.uploads import Upload, Uploads


def open_uploads(service: OssService, folder: Path, keep: int = 2) -> Uploads:
    oss = oss_of(service, folder)
    return Uploads(remote_at(oss), bytes_per_second=1e7, keep=keep, keep_every=None, first_pause=0.05)


def awaited(holds: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


class Slow:
    """Stands in for the process: each try waits to be let go, and then ends as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: Sent) -> None:
        self.tried: list[str] = []
        self.go_on = threading.Semaphore(0)
        ending = iter(ends)

        def attempt(_: Uploads, path: Path) -> Sent:
            self.tried.append(path.name)
            assert self.go_on.acquire(timeout=60)
            return next(ending, Sent())

        monkeypatch.setattr(Uploads, "_try", attempt)


def test_the_newest_goes_next_and_what_is_left_out_is_said(
    service: OssService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch)
    uploads = open_uploads(service, tmp_path)
    paths = [commits.attempt_path(tmp_path, step, f"{step:08x}") for step in (1, 2, 3)]
    uploads.offer(paths[0])
    awaited(lambda: slow.tried)
    for path in paths[1:]:
        uploads.offer(path)
    assert uploads.held == {paths[0].name, paths[2].name}
    told = uploads.poll()
    assert [upload.name for upload in told] == [paths[1].name] and told[0].line is not None
    assert f"{paths[2].name} was there before its turn came" in told[0].line
    slow.go_on.release(2)
    assert uploads.finish(60.0) is None and uploads.held == frozenset()
    assert slow.tried == [paths[0].name, paths[2].name]
    assert [upload.line for upload in uploads.poll()] == [None, None]


def test_a_failure_is_told_and_tried_again_until_a_newer_one_is_there(
    service: OssService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Sent(fault="no connection", is_over=False)
    slow = Slow(monkeypatch, failed, failed, Sent(), failed, Sent(), Sent(fault="damaged"))
    uploads = open_uploads(service, tmp_path)
    told: list[Upload] = []

    def told_so_far(count: int) -> bool:
        told.extend(uploads.poll())
        return len(told) == count

    paths = [commits.attempt_path(tmp_path, step, f"{step:08x}") for step in (1, 2, 3, 4)]
    uploads.offer(paths[0])
    slow.go_on.release(3)
    awaited(lambda: told_so_far(3))
    assert [(upload.tries, upload.sent.fault) for upload in told] == [
        (1, "no connection"),
        (2, "no connection"),
        (3, None),
    ]
    assert told[0].line == f"{paths[0].name} was not uploaded: no connection; it will be tried again"
    uploads.offer(paths[1])
    awaited(lambda: len(slow.tried) == 4)
    uploads.offer(paths[2])
    slow.go_on.release(2)
    awaited(lambda: told_so_far(6))
    assert [(upload.name, upload.sent.fault) for upload in told[3:]] == [
        (paths[1].name, "no connection"),
        (paths[1].name, f"{paths[2].name} takes its place"),
        (paths[2].name, None),
    ]
    uploads.offer(paths[3])
    slow.go_on.release()
    awaited(lambda: told_so_far(7))
    assert told[6].line is not None and "it will not be tried again" in told[6].line
    assert uploads.finish(60.0) is None


def test_the_end_of_a_run_waits_so_long_and_says_what_is_left(service: OssService, tmp_path: Path) -> None:
    path = make_commit(tmp_path, 1)
    service.plan({"kind": "silence", "method": "PUT", "seconds": 60.0, "times": -1})
    uploads = open_uploads(service, tmp_path)
    uploads.offer(path)
    awaited(lambda: uploads._child is not None)
    child = uploads._child
    started = time.monotonic()
    assert uploads.finish(1.0) == f"{path.name} not uploaded within 1 s"
    assert time.monotonic() - started < 20
    awaited(lambda: child is not None and child.poll() is not None)
    service.plan()


def test_saves_are_uploaded_beside_the_run_and_not_pruned_meanwhile(
    service: OssService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes; the first upload is held up while two more saves are made and pruned."""
    real = Uploads._try
    go_on = threading.Event()
    monkeypatch.setattr(Uploads, "_try", lambda self, path: (go_on.wait(60), real(self, path))[1])
    uploads = open_uploads(service, tmp_path, keep=1)
    toy = one().fill()
    made, _ = checkpoints(toy, tmp_path / "run", keep=1, uploads=uploads)
    paths = []
    for step in (1, 2, 3):
        made.save(step, {}, "seed: 1\n")
        paths.append(made.finish().path)
        awaited(lambda: uploads._current is not None)
    assert [attempt.path for attempt in commits.attempts(tmp_path / "run")] == [paths[2], paths[0]]
    go_on.set()
    assert uploads.finish(120.0) is None
    told = uploads.poll()
    faults = [(upload.name, upload.sent.fault) for upload in told]
    assert faults == [
        (paths[1].name, f"{paths[2].name} was there before its turn came"),
        (paths[0].name, None),
        (paths[2].name, None),
    ]
    assert told[2].sent.nbytes > 0 and told[2].sent.seconds > 0 and told[2].tries == 1
    made.save(4, {}, "seed: 1\n")
    made.finish()
    assert not paths[0].joinpath(commits.COMMIT).exists(), "it is pruned once it is no longer held"
    back = fetch_newest(uploads.remote, tmp_path / "back", lambda _: None, 5.0)
    assert back.name == paths[2].name and is_whole(tmp_path / "back")
