"""What torchrun is told for a run, and what comes out of it. Real runs: tests/train/test_signals.py."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.checkout import ROOT
from launch.jobs import slurm_job, torchrun
from launch.jobs.settings import settings
from launch.jobs.torchrun import SIGNALS, Fault, _understood, recipe_of, resumed, stopping_options
from launch.pages.story import read_story
from parallel.config import ParallelConfig
from tests.harness import faulty
from tests.harness.runs import fail, make_data, write_recipe
from train.config import CheckpointConfig, RunConfig
from train.ending import clear_ending, conclude, read_ending, write_ending

RUN = ["--nnodes=1", "-m", "train", "--config-name", "quickstart_stage1", "checkpoint.grace_seconds=90"]


def test_torchrun_waits_for_longer_than_a_run_may_take_to_end() -> None:
    signals, shutdown = stopping_options(CheckpointConfig(grace_seconds=90.5, commit_seconds=300.0))
    assert signals == f"--signals-to-handle={SIGNALS}" and "SIGUSR1" in SIGNALS.split(",")
    assert shutdown == "--shutdown-timeout=751"  # the last save waits for one that was given up
    assert recipe_of(RUN[3:]).checkpoint.grace_seconds == 90.0


def test_this_torch_understands_it() -> None:
    options = stopping_options(CheckpointConfig())
    assert _understood(options)[0] == options[0]


def test_a_torchrun_without_the_option_is_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import PContext

    old = argparse.ArgumentParser()
    old.add_argument("--signals-to-handle")
    monkeypatch.setattr(run, "get_args_parser", lambda: old)
    monkeypatch.setattr(PContext.close, "__defaults__", (None, 30))
    signals, shutdown = stopping_options(CheckpointConfig())
    assert _understood([signals, shutdown]) == [signals]
    assert PContext.close.__defaults__ == (None, int(shutdown.partition("=")[2]))


@pytest.mark.parametrize(
    ("verdict", "codes", "code"),
    [
        ("done", None, 0),
        ("done", [], 0),  # asked to end while it waited for its last evaluation
        ("done", [1], 1),
        ("again", [75, 75], 75),
        ("again", [143], 75),
        ("failed", [1, 1], 1),
        (None, [-9], 1),
        (None, [], 1),
        ("failed", [2, 2], 2),
    ],
)
def test_the_verdict_of_this_start_decides_the_exit_code(
    verdict: str | None, codes: list[int] | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ending(tmp_path, "again", "of an earlier start", 3)

    def run(arguments: list[str], config: RunConfig) -> Fault | None:
        assert read_ending(tmp_path) is None and arguments[-3:-1] == RUN[-2:]
        if verdict is not None:
            write_ending(tmp_path, verdict, "of this one", 5)  # type: ignore[arg-type]
        return None if codes is None else Fault(text="ranks have failed", codes=tuple(codes))

    monkeypatch.setattr(torchrun, "_torchrun", run)
    assert torchrun.main([*RUN, f"run_dir={tmp_path}"]) == code
    ending = read_ending(tmp_path)
    # Whoever would start it again learns that this would end the same.
    assert (ending is not None and ending.refused) == (code == 2)


def test_what_ranks_have_said_is_not_buried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block = "launch.jobs.together FAILED\nTo enable traceback see"
    for codes, code in (((2, 2), 2), ((2, 1), 1)):
        monkeypatch.setattr(torchrun, "_torchrun", lambda *_, codes=codes: Fault(text=block, codes=codes))
        assert torchrun.main(["-m", "launch.jobs.together", *RUN[3:], f"run_dir={tmp_path}"]) == code
        told = capsys.readouterr().err
        assert ("FAILED" in told) == (code == 1) and (
            f"mended first, as said above and in {tmp_path}/logs" in told
        ) == (code == 2)


def test_a_recipe_that_does_not_compose_ends_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert torchrun.main([*RUN, "stage.stepz=1"]) == 2
    assert "stage.stepz is not a key" in capsys.readouterr().err


class Became(Exception):
    """In the place of os.execv, which does not return."""


def starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    commits: list[int],
    fault: Fault,
    restarts: int = 2,
    ends: Callable[[], None] = lambda: None,
    code: int = 1,
) -> list[list[str]]:
    """Arguments of each start of a run that fails every time and seals a commit of each step of `commits`, one a start;
    0 for a start without. Then `ends` says how; the last one leaves with `code`."""
    found: list[list[str]] = []
    waiting = list(commits)

    def run(arguments: list[str], config: RunConfig) -> Fault:
        found.append(arguments)
        if waiting and (step := waiting.pop(0)):
            seal(tmp_path, step)
        ends()
        return fault

    def become(_: str, arguments: list[str]) -> None:
        raise Became(arguments)

    monkeypatch.setattr(torchrun, "_torchrun", run)
    monkeypatch.setattr(torchrun.os, "execv", become)
    arguments = [f"--restarts={restarts}", "--rdzv-endpoint=node0:29400", *RUN, f"run_dir={tmp_path}"]
    while True:
        try:
            assert torchrun.main(arguments) == code
            return found
        except Became as became:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
            (command,) = became.args
            assert command[1:3] == ["-m", "launch.jobs.torchrun"]
            arguments = command[3:]


def seal(run_dir: Path, step: int) -> Path:
    folder = run_dir / "checkpoints" / f"step_{step:08d}.00000000"
    folder.mkdir(parents=True)
    for name in ("COMMIT", "recipe.yaml"):
        (folder / name).touch()
    return folder


def test_a_run_is_started_again_as_long_as_it_gets_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = starts(tmp_path, monkeypatch, [0, 4, 8, 0, 0, 0], Fault(text="lost", codes=(-9, 1)))
    # One idle start; two that got on; three that did not, of which the last is one too many.
    assert len(found) == 6
    assert ["resume=true" in words for words in found] == [False, False, True, True, True, True]
    # Nodes do not end at once: nobody meets another's last store.
    ports = [next(word for word in words if word.startswith("--rdzv-endpoint")) for words in found]
    assert ports[:2] == ["--rdzv-endpoint=node0:29400", "--rdzv-endpoint=node0:29401"] and len(set(ports)) == 6


@pytest.mark.parametrize(
    ("fault", "restarts", "count"),
    [
        (Fault(text="torchrun was asked to end, or met no other node"), 3, 1),
        (Fault(text="lost", codes=(1,)), 0, 1),
        (Fault(text="the store has gone with another node", alone=True), 1, 2),
    ],
)
def test_what_is_started_again(
    fault: Fault, restarts: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(starts(tmp_path, monkeypatch, [], fault, restarts)) == count


def test_ranks_that_torchrun_itself_has_ended_have_asked_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(text="the store has gone with another node", alone=True)
    monkeypatch.setattr(torchrun, "clear_ending", lambda _: write_ending(tmp_path, "again", "SIGTERM", 3))
    assert len(starts(tmp_path, monkeypatch, [], fault, restarts=1)) == 2


@pytest.mark.parametrize(
    ("commits", "restarts", "codes", "count", "code"),
    [
        ([4], 2, [1, 1], 2, 1),  # once after the commit
        ([4, 8, 0], 2, [1, 1], 3, 1),
        ([], 2, [1, 1], 2, 1),  # and once from the beginning
        ([4], 0, [1, 1], 1, 75),  # for SLURM, which puts it back in the queue
        ([4, 8], 2, [], 1, 75),  # torchrun itself was asked to end while the run was stuck
    ],
)
def test_a_run_that_is_stuck_is_started_again_once_after_each_commit(
    commits: list[int],
    restarts: int,
    codes: list[int],
    count: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stuck() -> None:
        assert read_ending(tmp_path) is None, "what an earlier start has said is forgotten"
        conclude(tmp_path, "stuck", "rank 1 is stopped", 3)

    fault = Fault(text="ranks have failed", codes=tuple(codes))
    assert len(starts(tmp_path, monkeypatch, commits, fault, restarts, ends=stuck, code=code)) == count


def test_what_is_stuck_when_restarts_are_used_up_goes_back_to_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed otherwise first, so that this start is the last one in place."""
    ends = iter([lambda: None, lambda: conclude(tmp_path, "stuck", "rank 1 is stopped", 3)])
    seal(tmp_path, 4)
    fault = Fault(text="lost", codes=(1, 1))
    assert len(starts(tmp_path, monkeypatch, [], fault, 1, ends=lambda: next(ends)(), code=75)) == 2
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    assert slurm_job.end(str(tmp_path)) == "again"


@pytest.mark.timeout(400)
def test_a_run_whose_rank_is_stopped_goes_on_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: rank 1 stands still in the third step of a start; the next one goes on from a step and ends sooner."""
    monkeypatch.setenv("RESTARTS", "2")
    recipe = write_recipe(tmp_path / "recipe", make_data(tmp_path / "data"), "stage2", ParallelConfig(), processes=2)
    fault = faulty.Fault(kind="stop", where="forward", rank=1, microbatches=2)
    few = ("stage.steps=3", "checkpoint.every_steps=1", "parallel.timeout_seconds=40")
    ended = fail(recipe, tmp_path / "run", fault, *few, timeout=300.0)
    assert ended.code == 0 and not ended.left_over, ended.output
    ending = read_ending(tmp_path / "run")
    assert ending is not None and (ending.verdict, ending.step, ending.stuck) == ("done", 3, 0)
    assert "torchrun: start 2, from step_0000000" in ended.output  # that of step 2 may not be sealed yet
    story = read_story(tmp_path / "run")
    first, second = (start["step"] for start in story.starts)  # the run's page lists what began in place too
    assert first == 0 and second in (1, 2) and story.steps.tolist() == [1, 2, 3]


def test_each_rank_gets_a_log_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = starts(tmp_path, monkeypatch, [], Fault(text="lost", codes=(1,)), restarts=0)
    at = words.index("--no-python")
    script, logs = words[at + 1 : at + 3]
    assert Path(script).name == "rank.sh" and logs == f"{tmp_path}/logs"
    assert words[at + 4 : at + 7] == ["-u", "-m", "train"]
    given = {each.name: each for each in settings(recipe_of(RUN[3:]).parallel)}
    assert given["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"].value == "600"
    assert all(each.reason for each in given.values())


RANK = {"RANK": "3", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(("local", "shown"), [("4", "to the console\n"), ("2", "")])
def test_a_rank_that_is_killed_has_said_all_in_its_log(tmp_path: Path, local: str, shown: str) -> None:
    script = "print('to the console', flush=True); import os; os.write(2, b'last words'); os.kill(os.getpid(), 9)"
    environment = os.environ | RANK | {"LOCAL_WORLD_SIZE": local, "WORLD_SIZE": "4", "SLURMD_NODENAME": "n7"}
    done = subprocess.run(
        [str(ROOT / "launch" / "rank.sh"), str(tmp_path / "logs"), sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9 and done.stdout == shown
    log = tmp_path / "logs" / "rank_00003.log"
    deadline = time.monotonic() + 30
    while "last words" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    head, *rest = log.read_text().split("\n", 1)
    assert head.startswith("--- 20") and ", n7, process " in head
    assert sorted(rest[0].replace("\n", "")) == sorted("to the console" + "last words")


ASKED_BY_SLURM = """
import os, pathlib, signal, sys, time
print("first words", flush=True)
log, TEE = sys.argv[1].encode(), b"tee\\0-ap\\0--\\0"
while not pathlib.Path(sys.argv[1]).read_text().endswith("first words\\n"):
    time.sleep(0.01)
lines = pathlib.Path("/proc").glob("[0-9]*/cmdline")
writers = [int(line.parent.name) for line in lines if line.exists() and line.read_bytes().startswith(TEE + log)]
assert len(writers) == 2, writers
for process in writers:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(process, number)
time.sleep(0.2)  # to die of it
print("last words", flush=True)
"""


def test_what_writes_a_ranks_log_is_asked_to_end_and_goes_on(tmp_path: Path) -> None:
    """scancel sends SIGTERM to every process of a job step; the rank then saves, and says so."""
    log = tmp_path / "logs" / "rank_00003.log"
    done = subprocess.run(
        [str(ROOT / "launch" / "rank.sh"), str(log.parent), sys.executable, "-c", ASKED_BY_SLURM, str(log)],
        env=os.environ | RANK | {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout == "first words\nlast words\n", done


def test_a_start_goes_on_where_there_is_a_commit(tmp_path: Path) -> None:
    words = ["--config-name", "recipe", "new_segment=[sources]", "resume=false"]
    assert resumed(words, tmp_path, "") == words
    first, second = seal(tmp_path, 4), seal(tmp_path, 8)
    # The segment has not begun where there is no commit but the one that the run was gone on with.
    assert resumed(words, tmp_path, second.name) == [*words[:3], "resume=true"]
    assert resumed(words, tmp_path, first.name) == [*words[:2], "resume=true"]


def test_a_verdict_is_whole_or_not_there(tmp_path: Path) -> None:
    assert read_ending(tmp_path / "none") is None
    clear_ending(tmp_path / "none")
    (tmp_path / "checkpoints" / "step_00000004.00000000").mkdir(parents=True)
    write_ending(tmp_path, "failed", "it raised", 4)
    ending = read_ending(tmp_path)
    assert ending is not None and (ending.verdict, ending.step, ending.commit) == ("failed", 4, None)  # never sealed
    (tmp_path / "checkpoints" / "step_00000004.00000000" / "COMMIT").touch()
    write_ending(tmp_path, "again", "it was asked", 4)
    ending = read_ending(tmp_path)
    assert ending is not None and ending.commit == "step_00000004.00000000"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["verdict.json"]
    (tmp_path / "verdict.json").write_text('{"verdict": "aga')
    assert read_ending(tmp_path) is None
    (tmp_path / "verdict.json").write_text('{"verdict": "maybe", "step": 1, "commit": null, "reason": "", "when": ""}')
    assert read_ending(tmp_path) is None
