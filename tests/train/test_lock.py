"""One start of a run in its folder at a time."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch.checkpoints.transfers import uploaded
from launch.jobs import slurm_job, torchrun
from launch.jobs.preflight import begin
from parallel.verdict import How
from train import lock
from train.ending import clear_ending, conclude, read_ending, write_ending
from train.lock import LEASE_SECONDS, LOCK, Held, RunLock, check_lock
from train.resolve import compose

HOLD = """
import sys
from train.lock import RunLock
lock = RunLock(sys.argv[1])
lock.take()
print("taken", flush=True)
input()
"""


LOOK = """
import fcntl, sys
file = open(sys.argv[1] + "/lock", "rb")
fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
print("looking", flush=True)
input()
"""
"""As `check_lock`, but not over yet."""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_start_is_refused_as_long_as_the_first_lives(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ValueError, match=rf"is being trained in by process {holder.pid} of .* since 2"):
        RunLock(tmp_path).take()
    with pytest.raises(ValueError, match="name another run_dir"):
        check_lock(tmp_path)
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).read_text().startswith(f"process {holder.pid} "), "what a dead start leaves"
    check_lock(tmp_path)  # blocks nobody
    RunLock(tmp_path).take()


def test_nodes_that_look_at_once_do_not_take_each_other_for_a_run(tmp_path: Path) -> None:
    """All nodes of a job look before its one rank 0 takes the lock."""
    (tmp_path / LOCK).write_text("process 1 of a start that is over\n")
    other = subprocess.Popen(
        [sys.executable, "-c", LOOK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "looking\n"
        check_lock(tmp_path)
    finally:
        other.kill()
        other.communicate()


def test_a_look_of_another_refuses_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool looks for a moment, and a start that comes then tries again."""
    (tmp_path / LOCK).write_text("process 1 of a start that is over\n")
    other = subprocess.Popen(
        [sys.executable, "-c", LOOK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def sleep(_: float) -> None:
        other.kill()
        other.wait()

    try:
        assert other.stdout is not None and other.stdout.readline() == "looking\n"
        monkeypatch.setattr(lock.time, "sleep", sleep)
        RunLock(tmp_path).take()
        assert other.returncode is not None, "it had been kept out"
    finally:
        other.kill()
        other.communicate()


def test_the_look_before_a_start_touches_nothing_of_who_trains(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    write_ending(tmp_path, "again", "of who trains", 3)
    (check,) = begin(replace(compose("quickstart_stage2"), run_dir=str(tmp_path)))
    assert not check.ok and f"by process {holder.pid} of" in check.found and read_ending(tmp_path) is not None


def test_what_would_cross_a_run_that_trains_is_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    write_ending(tmp_path, "done", "of who trains", 3)
    with pytest.raises(ValueError, match=f"by process {holder.pid} of"):
        uploaded(tmp_path)
    with pytest.raises(SystemExit):
        slurm_job.main(["begin", "--config-name", "quickstart_stage2", f"run_dir={tmp_path}"])
    assert torchrun.main(["-m", "train", "--config-name", "quickstart_stage2", f"run_dir={tmp_path}"]) == 2
    assert read_ending(tmp_path) is not None
    holder.kill()
    holder.wait()
    slurm_job.main(["begin", "--config-name", "quickstart_stage2", f"run_dir={tmp_path}"])
    assert read_ending(tmp_path) is None


def owned_elsewhere(run_dir: Path, meeting: str = "node7:29400") -> None:
    (run_dir / LOCK).write_text(f"process 4711 of node7, ranks meet at {meeting}, since 2026-11-22T03:00:00Z\n")


def test_a_start_waits_for_what_a_lost_node_has_left(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its job is put back in the queue before the server of the files has given the node up."""
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            holder.kill()
            holder.wait()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(Held):
        check_lock(tmp_path, LEASE_SECONDS)  # it lives on this host
    owned_elsewhere(tmp_path)
    with pytest.raises(Held):
        check_lock(tmp_path)
    assert not looks
    with caplog.at_level(logging.WARNING):
        slurm_job.main(["begin", "--config-name", "quickstart_stage2", f"run_dir={tmp_path}"])
    assert len(looks) == 2 and "by process 4711 of node7" in caplog.text and "for 120 s" in caplog.text


def test_a_start_does_not_wait_without_end(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_elsewhere(tmp_path)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.01)
    with pytest.raises(Held, match=f"If its node was lost, delete {tmp_path / LOCK}"):
        check_lock(tmp_path, 0.05)


@pytest.mark.parametrize(("how", "said"), [("asked", "again"), ("failed", "failed")])
def test_a_start_that_is_refused_says_nothing_of_the_run(
    how: How, said: str, tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start without launch/torchrun.sh comes as far as its ranks; and Ctrl-C may end it there."""
    conclude(tmp_path, how, "rank 0: Held", 0)
    assert read_ending(tmp_path) is None
    owned_elsewhere(tmp_path)  # by rank 0 of the same job, which hangs
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "29400")
    conclude(tmp_path, how, "rank 1: no sign of life of rank 0", 0)
    assert (ending := read_ending(tmp_path)) is not None and ending.verdict == said


def test_a_fault_after_all_was_saved_leaves_the_verdict(tmp_path: Path) -> None:
    """As where the disk takes no more lines of metrics, or a server of curves is gone."""
    write_ending(tmp_path, "again", "step 3 is saved", 3)
    conclude(tmp_path, "failed", "rank 0: OSError", 3)
    assert (ending := read_ending(tmp_path)) is not None and ending.verdict == "again"
    clear_ending(tmp_path)  # the next start
    conclude(tmp_path, "failed", "rank 0: OSError", 3)
    assert (ending := read_ending(tmp_path)) is not None and ending.verdict == "failed"


def test_other_nodes_can_read_who_has_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps what was written until the file is closed, which this one never is, or fsync."""
    written: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: written.append((tmp_path / LOCK).read_bytes()))
    held = RunLock(tmp_path)
    held.take()
    assert len(written) == 1 and written[0].startswith(f"process {os.getpid()} of ".encode())
    held._file.close()  # type: ignore[union-attr]


def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with caplog.at_level(logging.WARNING):
        RunLock(tmp_path / "run").take()
    assert "nothing keeps a second start out" in caplog.text


def test_a_look_leaves_no_folder_behind(tmp_path: Path) -> None:
    check_lock(tmp_path / "run")
    assert not (tmp_path / "run").exists()
