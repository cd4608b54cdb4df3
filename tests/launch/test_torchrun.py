"""What torchrun is told for a run, and what comes out of it. Real runs: tests/train/test_signals.py."""

import argparse
from pathlib import Path

import pytest

from launch import torchrun
from launch.torchrun import SIGNALS, _understood, recipe_of, stopping_options
from train.config import CheckpointConfig
from train.ending import clear_ending, read_ending, write_ending

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
    ("verdict", "fault", "code"),
    [
        ("done", None, 0),
        ("again", "ChildFailedError", 75),
        ("failed", "ChildFailedError", 1),
        (None, "ChildFailedError", 1),
    ],
)
def test_the_verdict_of_this_start_decides_the_exit_code(
    verdict: str | None, fault: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ending(tmp_path, "again", "of an earlier start", 3)

    def run(arguments: list[str]) -> str | None:
        assert read_ending(tmp_path) is None and arguments[-len(RUN) - 1 : -1] == RUN
        if verdict is not None:
            write_ending(tmp_path, verdict, "of this one", 5)  # type: ignore[arg-type]
        return fault

    monkeypatch.setattr(torchrun, "_torchrun", run)
    assert torchrun.main([*RUN, f"run_dir={tmp_path}"]) == code


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
