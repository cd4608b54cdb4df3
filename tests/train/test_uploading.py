"""What a run's end gives to uploads: never the time in which it has to end itself, and not before its verdict."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train import trainer as trainer_module
from train import uploading
from train.config import RunConfig
from train.ending import read_ending
from train.resolve import compose
from train.trainer import Trainer
from train.uploading import ENDING_SECONDS, finish_uploads


def recipe(run_dir: Path) -> RunConfig:
    run = compose("quickstart_stage2")
    checkpoint = replace(run.checkpoint, upload="oss://shards/run", transfer_seconds=3600.0)
    return replace(run, run_dir=str(run_dir), checkpoint=checkpoint)


class Held:
    """Uploads that are not done yet."""

    held = frozenset({"step_00000010.0000000a"})

    def __init__(self) -> None:
        self.waited: list[float] = []

    def poll(self) -> list[Any]:
        return []

    def finish(self, seconds: float) -> str:
        self.waited.append(seconds)
        return "step_00000010.0000000a not uploaded"


@pytest.mark.parametrize(
    ("left", "agreed", "waits"),
    [(math.inf, False, 3600.0), (25.0, True, 25.0 - ENDING_SECONDS), (3.0, True, 0.0), (1e5, True, 3600.0)],
)
def test_uploads_get_what_the_grace_leaves_but_for_the_end(
    left: float, agreed: bool, waits: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uploads: Any = Held()
    finish_uploads(recipe(tmp_path), uploads, None, SimpleNamespace(seconds_left=left, agreed=agreed))  # type: ignore[arg-type]
    assert uploads.waited == [waits]
    told = capsys.readouterr().err
    assert ("waiting at most" in told) == (waits > 0) and "`triptych checkpoint upload RUN` sends it" in told


def test_all_ranks_wait_for_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once one has ended, the watch of a run that was asked ends the others within seconds, whatever rank 0 still waits
    for; of a stage that is over, torchrun of a node without rank 0 has five minutes of patience."""
    waited: list[float] = []
    monkeypatch.setattr(uploading, "slowly_on_first_rank", lambda what, action, seconds: waited.append(seconds))
    run, asked = recipe(tmp_path), SimpleNamespace(seconds_left=25.0, agreed=True)
    finish_uploads(run, None, None, asked)  # type: ignore[arg-type]
    assert waited == [25.0 - ENDING_SECONDS]
    finish_uploads(run, None, None, SimpleNamespace(seconds_left=math.inf, agreed=False))  # type: ignore[arg-type]
    without = replace(run, checkpoint=replace(run.checkpoint, upload=None))
    finish_uploads(without, None, None, asked)  # type: ignore[arg-type]
    assert waited == [25.0 - ENDING_SECONDS, 3600.0]


@pytest.mark.parametrize(("agreed", "due", "verdict"), [(True, 20, "again"), (False, 10, "done"), (True, 10, "done")])
def test_the_verdict_is_there_while_uploads_are_waited_for(
    agreed: bool, due: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(trainer_module, "finish_uploads", lambda *_: found.append(read_ending(tmp_path)))
    monkeypatch.setattr(trainer_module, "Metrics", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(trainer_module, "peak_flops", lambda _: None)
    monkeypatch.setattr(trainer_module, "this_start", lambda *_: None)
    trainer: Any = object.__new__(Trainer)
    trainer.run = replace(recipe(tmp_path), stop_after_steps=due)
    trainer.state = SimpleNamespace(step=10, tokens=0)
    trainer.groups = SimpleNamespace(rank=0, device=None, world_size=1, dp_size=1)
    trainer.stop = SimpleNamespace(agreed=agreed, serving=lambda *_: nullcontext())
    left: list[str] = []
    trainer.id = "a run"
    board = SimpleNamespace(tell=lambda phase: None)
    trainer.watch = SimpleNamespace(telling=nullcontext, stopped=left.append, board=board)
    trainer.evaluator = SimpleNamespace(finish=lambda *_: None, close=lambda: None)
    trainer.profiler = SimpleNamespace(close=lambda: None)
    trainer.checkpoints = SimpleNamespace(finish=lambda: None)
    trainer.batches = trainer.bad = SimpleNamespace(close=lambda: None)
    trainer.uploads = None
    trainer.fit()
    assert [(ending.verdict, ending.step) for ending in found] == [(verdict, 10)]
    assert left == (["step 10 had been saved"] if verdict == "again" else [])
