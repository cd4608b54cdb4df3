"""A command beside training: its result is read back, and nothing that becomes of it holds or ends the run."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.config import SourceConfig
from launch.answering.answers import answers_of
from launch.answering.beside import _command
from parallel.config import ParallelConfig
from parallel.place import Board
from tests.harness.evaluated import evaluated_run, evaluations, train_here, write_held_out
from tests.harness.runs import ROOT, make_data
from tests.prove.context import Worlds
from train import evaluator as evaluator_module
from train.beside import Beside
from train.checkpoint.load import find_commit
from train.config import RunConfig
from train.evaluator import Evaluator
from train.metrics import Metrics
from train.shown import Shown

PATIENCE = 120.0


@contextmanager
def beside(folder: Path, what: str, **evaluate: Any) -> Iterator[Beside]:
    source = SourceConfig(name="held", path="held")
    run = evaluated_run(folder, folder, (source,), ParallelConfig(), command=(what,), **evaluate)
    made = Beside(run, module="tests.harness.stand_in")
    try:
        yield made
    finally:
        made.close()


def come(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def pids(folder: Path, step: int) -> list[int]:
    path = folder / "evaluations" / f"step_{step:08d}" / "pids"
    come(path.exists)
    return [int(pid) for pid in path.read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_result_is_read_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with beside(tmp_path, "tell") as made:
        made.start(tmp_path, 4)
        (told,) = come(made.poll)
        assert told == {
            "step": 4,
            "fault": None,
            "command": {"score": 0.5},
            "seen": {"CUDA_VISIBLE_DEVICES": ""},  # no rank of the run, and none of its GPUs
        }
        assert made.poll() == []


def test_what_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    with beside(tmp_path, "hang") as made:
        made.start(tmp_path, 2)
        started = pids(tmp_path, 2)
        assert made.poll() == []
        made.start(tmp_path, 4)
        made.start(tmp_path, 6)
        assert [(told["step"], "left out" in told["fault"]) for told in made.poll()] == [(4, True)]
        made._deadline = 0.0
        (told,) = made.poll()
        assert told == {"step": 2, "fault": "ended after 3600 s"}
        come(lambda: all(map(gone, started)))
        started = pids(tmp_path, 6)  # the newest has waited for its turn
        made.start(tmp_path, 8)
        made.wait(0.1, lambda: False)
        assert [(told["step"], "with the run" in told["fault"]) for told in made.poll()] == [(6, True), (8, True)]
        come(lambda: all(map(gone, started)))


def finish(made: Beside, run: RunConfig, stop: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the end of a stage records, with `made` for what runs beside it."""
    monkeypatch.setattr(evaluator_module, "Evaluation", lambda *_: None)
    monkeypatch.setattr(evaluator_module, "Beside", lambda _: made)
    groups: Any = SimpleNamespace(rank=0)
    told: list[dict[str, Any]] = []
    metrics: Any = SimpleNamespace(record_beside=told.append)
    Evaluator(run, groups, None, Board(), None).finish(metrics, stop)  # type: ignore[arg-type]
    return told


def test_the_end_of_the_stage_waits_for_what_is_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceConfig(name="held", path="held")
    run = evaluated_run(tmp_path, tmp_path, (source,), ParallelConfig(), command=("tell",))
    assert run.evaluate.wait_seconds is None
    with beside(tmp_path, "tell") as made:
        made.start(tmp_path, 2)
        made.start(tmp_path, 4)  # waits for that of step 2, if it is not over
        told = finish(made, run, SimpleNamespace(heard=False), monkeypatch)
    assert [(each["step"], each["fault"], each["command"]) for each in told] == [
        (step, None, {"score": 0.5}) for step in (2, 4)
    ]


def test_the_end_waits_no_longer_than_the_command_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceConfig(name="held", path="held")
    run = evaluated_run(tmp_path, tmp_path, (source,), ParallelConfig(), command=("hang",), command_seconds=0.1)
    with beside(tmp_path, "hang", command_seconds=0.1) as made:
        made.start(tmp_path, 2)
        told = finish(made, run, SimpleNamespace(heard=False), monkeypatch)
    assert [(each["step"], each["fault"]) for each in told] == [(2, "ended after 0.1 s")]


@pytest.mark.parametrize(("heard", "wait"), [(True, {}), (False, {"wait_seconds": 0.0})])
def test_a_run_that_is_asked_to_end_waits_for_nothing_beside_it(
    heard: bool, wait: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceConfig(name="held", path="held")
    run = evaluated_run(tmp_path, tmp_path, (source,), ParallelConfig(), command=("hang",), **wait)
    with beside(tmp_path, "hang") as made:
        made.start(tmp_path, 2)
        started = pids(tmp_path, 2)
        told = finish(made, run, SimpleNamespace(heard=heard), monkeypatch)
        assert [(each["step"], "ended with the run" in each["fault"]) for each in told] == [(2, True)]
        come(lambda: all(map(gone, started)))


def test_all_ranks_wait_for_what_is_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun of a node without rank 0 would leave after five minutes, and the job's store with it."""
    waited: list[float] = []
    monkeypatch.setattr(evaluator_module, "Evaluation", lambda *_: None)
    monkeypatch.setattr(evaluator_module, "slowly_on_first_rank", lambda what, action, seconds: waited.append(seconds))
    source, groups = SourceConfig(name="held", path="held"), SimpleNamespace(rank=1)
    wanted: list[dict[str, Any]] = [
        {"command": ("tell",), "command_seconds": 50.0},
        {"command": ("tell",), "wait_seconds": 7.0},
        {"answers": 2, "wait_seconds": 0.0},
        {},
    ]
    for each in wanted:
        run = evaluated_run(tmp_path, tmp_path, (source,), ParallelConfig(), **each)
        Evaluator(run, groups, None, Board(), None).finish(None, SimpleNamespace(heard=False))  # type: ignore[arg-type]
    assert waited == [100.0, 7.0]  # the one under way, and the one that waits for it


def test_what_dies_is_told(tmp_path: Path) -> None:
    with beside(tmp_path, "die") as made:
        made.start(tmp_path, 2)
        (told,) = come(made.poll)
        assert told["step"] == 2 and "left with 3 and no result" in told["fault"] and "log.txt" in told["fault"]


def test_it_ends_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from train.beside import Beside\n"
        "from train.config import EvaluateConfig\n"
        "run = SimpleNamespace(run_dir=sys.argv[1], evaluate=EvaluateConfig(command=('hang',)))\n"
        "made = Beside(run, module='tests.harness.stand_in')\n"
        "made.start(Path(sys.argv[1]), 2)\n"
        "time.sleep(600)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    try:
        started = pids(tmp_path, 2)
        trainer.kill()
        come(lambda: all(map(gone, started)))
    finally:
        trainer.kill()
        trainer.wait()


WRITES = """
import json, sys
from pathlib import Path
found = {"tensors": len(list(Path(sys.argv[1]).glob("*.safetensors"))), "step": int(sys.argv[2])}
Path(sys.argv[3]).write_text(json.dumps(found))
"""


def test_a_checkpoint_is_answered_and_commanded(tmp_path: Path, worlds: Worlds) -> None:
    """What the process beside the run does: answers in transformers; the checkpoint exported for a user's program."""
    data = make_data(tmp_path / "data")
    held = write_held_out(data, data)
    run = evaluated_run(tmp_path / "run", data, held[:1], ParallelConfig(), steps=1)
    worlds.run(1, train_here, run=run)
    commit = find_commit(run.run_dir).path
    command = (sys.executable, "-c", WRITES, "{export}", "{step}", "{out}")
    wanted = replace(run.evaluate, answers=3, answer_tokens=4, command=command)
    assert _command(commit, tmp_path, 1, wanted) == {"tensors": 1, "step": 1}
    shown = answers_of(commit, wanted)
    assert 1 <= len(shown) <= 3 and all(each.expected and each.answer and each.pictures for each in shown)
    assert Shown.from_dict(shown[0].to_dict()).to_dict() == shown[0].to_dict()
    metrics = Metrics(run, None, from_step=1, from_progress=1.0)
    told = {"step": 1, "fault": None, "samples": [each.to_dict() for each in shown], "command": {"score": 0.5}}
    metrics.record_beside(told)
    metrics.close()
    line = evaluations(tmp_path / "run")[-1]
    assert line["command"] == {"score": 0.5} and line["samples"] == told["samples"] and line["fault"] is None
