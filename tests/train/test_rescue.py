"""What a run leaves behind that has to end before all is saved. Whole jobs: tests/train/test_signals.py."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.stop import Stop
from tests.train.toy_layouts import one
from train import trainer, uploading
from train.checkpoint.contents import Outcome
from train.checkpoint.entries import ALONE
from train.checkpoint.load import find_commit
from train.checkpoint.run import RunCheckpoints
from train.ending import read_ending, write_ending
from train.errors import CheckpointError
from train.quarantine import Quarantine, go_on_from
from train.rescue import save_finished
from train.trainer import Trainer
from train.uploading import open_uploads


def checkpoints(run: Path) -> RunCheckpoints:
    toy = one().fill()
    return RunCheckpoints(run, toy.parameters, toy.boxes, toy, writer=ALONE, frozen=(), keep=9, commit_seconds=30.0)  # type: ignore[arg-type]


def test_a_rescue_has_no_record_of_the_step_that_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "states", lambda groups: [])
    bad = Quarantine(tmp_path, 0)
    told: Callable[[], dict[str, Any]] = dict
    run = SimpleNamespace(
        bad=bad,
        groups=SimpleNamespace(is_reader=True, device=torch.device("cpu")),
        state=SimpleNamespace(step=3),
        _told=lambda: told,
    )
    bad.keep({"sample": 1})
    state = Trainer._finished(run)  # type: ignore[arg-type]
    bad.keep({"sample": 2})  # step 4 begins, and never ends
    said = save_finished(state, lambda value: [value], checkpoints(tmp_path), "", torch.device("cpu"))
    assert "the step after 3 was given up; step 3 is saved" in said
    go_on_from(tmp_path, find_commit(tmp_path))
    assert Quarantine(tmp_path, 0).records == [{"sample": 1}]


@pytest.mark.parametrize(
    ("asked", "newest", "ends"), [(True, 7, "again"), (True, None, "failed"), (False, 7, "failed")]
)
def test_a_last_save_that_fails_is_no_failure_of_a_run_that_can_go_on(
    asked: bool, newest: int | None, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "any_of", lambda group, flag: flag)

    def finish() -> None:
        raise CheckpointError("the disk is full")

    run: Any = SimpleNamespace(
        checkpoints=SimpleNamespace(finish=finish, newest=newest), stop=SimpleNamespace(heard=bool(asked))
    )
    if ends == "failed":
        with pytest.raises(CheckpointError):
            Trainer._last_saved(run)
    else:
        assert trainer._where(Trainer._last_saved(run)) == " could not be saved: the disk is full"


def trainer_at(step: int, due: int, stop: Stop) -> Any:
    made: Any = object.__new__(Trainer)
    made.run, made.stop = SimpleNamespace(stop_after_steps=due), stop
    made.state, made.groups = SimpleNamespace(step=step), SimpleNamespace(rank=0)
    made.watch = SimpleNamespace(
        board=SimpleNamespace(tell=lambda phase: None, spent=SimpleNamespace(add=lambda phase, seconds: None))
    )
    made.metrics = None
    return made


@pytest.mark.parametrize(("asked", "due", "last"), [(False, 9, False), (True, 9, True), (False, 3, True)])
def test_a_save_begins_when_all_ranks_have_heard_of_the_one_before(
    asked: bool, due: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the state of each can be held, whichever of them is late."""
    monkeypatch.setattr(Trainer, "progress", 0.0)
    monkeypatch.setattr(Trainer, "_finished", lambda _: SimpleNamespace(step=3, told=dict, records=[], random=[]))
    monkeypatch.setattr(Trainer, "_recipe", lambda _: "")
    store = dist.HashStore()
    stop = Stop(0, 1, lambda: store, print)
    made, done = trainer_at(3, due, stop), list[tuple[str, bool]]()

    def agree(group: None, flag: bool) -> bool:
        done.append(("agree", stop._state is not None))
        return asked

    monkeypatch.setattr(trainer, "any_of", agree)
    made.optimizer = SimpleNamespace(average_replicas=lambda: done.append(("average", stop._state is not None)))
    made.checkpoints = SimpleNamespace(
        settle=lambda: done.append(("settle", stop._state is not None)),
        save=lambda *_, last: done.append(("last" if last else "save", stop._state is not None)),
    )
    with stop.serving(30.0, lambda state, gathered: ""):
        made.save()
    assert done == [("settle", True), ("agree", True), ("average", False), ("last" if last else "save", False)]
    assert stop.agreed == stop.heard == asked


@pytest.mark.parametrize(("due", "goes_on"), [(9, True), (3, False)])
def test_training_is_said_to_go_on_where_it_does(
    due: int, goes_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "progress", 0.0)
    failed = Outcome(step=3, path=Path("f"), fault="no room", nbytes=1, stall_seconds=0.0, write_seconds=1.0)
    trainer_at(3, due, Stop(0, 1, dist.HashStore, print))._saved(failed)
    told = capsys.readouterr().err
    assert "step 3 was not finished and counts for nothing: no room" in told and ("goes on" in told) == goes_on


def test_a_start_that_fails_before_its_first_step_has_the_step_of_the_commit(tmp_path: Path) -> None:
    for step in (4, 9):
        made = checkpoints(tmp_path)
        made.save(step, {}, "")
        made.finish()
    for told, due in ((0, 9), (5, 5)):  # steps after a checkpoint that was gone on from are what they are
        write_ending(tmp_path, "failed", "out of memory", told)
        ending = read_ending(tmp_path)
        assert ending is not None and ending.step == due and (ending.commit or "").startswith("step_00000009")


def test_a_note_of_uploads_that_cannot_be_written_is_told_to_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_note(run_dir: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploading, "remote_of", lambda run: SimpleNamespace(write_note=write_note))
    run: Any = SimpleNamespace(run_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match="noting where checkpoints are uploaded to failed on rank 0"):
        open_uploads(run, 0, None)
