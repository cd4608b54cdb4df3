"""wandb and TensorBoard get what metrics.jsonl has, by their own packages; what fails there ends nothing."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness.sunk import read_tensorboard, read_wandb
from tests.train.test_metrics import REPORT, lines, tiny_run
from train.metrics import Metrics
from train.ready import file_faults
from train.shown import Shown
from train.sinks import Sinks, scalars
from train.state import TrainState

SHOWN = [
    Shown(
        source="captions",
        sample="captions:7",
        prompt="[image] What?\n<script>alert(1)</script>",
        expected="one",
        answer="two # not a heading",
        right=False,
        loss=0.5,
        pictures=(np.full((8, 12, 3), 200, dtype=np.uint8),),
    )
]


def sunk(folder: Path, **log_changes: Any) -> None:
    """A run of two steps and an evaluation."""
    run = tiny_run(folder)
    metrics = Metrics(replace(run, log=replace(run.log, **log_changes)), 1e12, from_step=0, from_progress=0.0)
    for step in (1, 2):
        metrics.record(TrainState(step=step, tokens=400 * step), REPORT, progress=0.1 * step)
    metrics.record_evaluation(2, {"captions": 1.25, "empty": float("nan")}, SHOWN)
    metrics.close()


def test_tensorboard_has_every_number_and_the_samples(tmp_path: Path) -> None:
    sunk(tmp_path, tensorboard=True)
    numbers, texts, pictures = read_tensorboard(tmp_path / "tensorboard")
    for line in lines(tmp_path):
        for name, value in scalars(line).items():
            assert numbers[name][line["step"]] == pytest.approx(value, rel=1e-6), name
    assert numbers["evaluation/captions"] == {2: 1.25} and "evaluation/empty" not in numbers
    (told,) = texts.values()
    assert all(line.startswith("    ") for line in told.splitlines()), "Markdown would make something of it"
    assert "<script>" in told and "answer: two # not a heading" in told
    assert pictures == {"samples/0/0": (8, 12)}


def test_wandb_offline_has_every_number_and_the_table(tmp_path: Path) -> None:
    sunk(tmp_path, wandb="offline")
    history, config = read_wandb(tmp_path / "wandb")
    for line in lines(tmp_path):
        (row,) = [row for row in history if row.get("step") == line["step"] and "loss" in row]
        assert {name: row[name] for name in scalars(line)} == pytest.approx(scalars(line))
    (table,) = [row["samples/path"] for row in history if "samples/path" in row]
    stored = json.loads(next(tmp_path.glob(f"wandb/offline-run-*/files/{table}")).read_text())
    assert stored["columns"] == ["source", "sample", "prompt", "expected", "answer", "right", "loss", "picture 0"]
    assert stored["data"][0][:7] == ["captions", "captions:7", SHOWN[0].prompt, "one", SHOWN[0].answer, False, 0.5]
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 1
    assert config["stage"]["name"] == "stage2" and config["optimizer"]["clip_norm"] == 1.0


def test_a_sink_that_fails_is_left_alone_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []

    class Failing:
        def log(self, numbers: Mapping[str, float], step: int) -> None:
            told.append(step)
            raise OSError("No space left on device")

        def show(self, shown: Sequence[Shown], step: int) -> None:
            told.append(-step)

        def close(self) -> None:
            told.append(0)

    sinks = Sinks({"wandb": Failing()})
    with caplog.at_level(logging.WARNING):
        sinks.log({}, 1)
        sinks.log({}, 2)
        sinks.show([], 2)
        sinks.close()
    assert told == [1] and [record.getMessage() for record in caplog.records] == [
        "wandb is given up, metrics.jsonl goes on: OSError: No space left on device"
    ]


def test_a_sink_that_cannot_be_opened_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr("train.sinks.WandbSink", refused)
    sunk(tmp_path, wandb="online")
    assert len(lines(tmp_path)) == 2 and "wandb is not used" in caplog.text


def test_tensorboard_without_its_package_is_refused_beforehand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run = replace(run, log=replace(run.log, tensorboard=True))
    cure = "pip install 'triptych[tensorboard]'"
    assert not any(cure in fault for fault in file_faults(run))
    monkeypatch.setattr("train.ready.importlib.util.find_spec", lambda name: None)
    assert any(cure in fault for fault in file_faults(run))


def test_an_evaluation_is_kept_with_its_pictures_and_once_after_a_resume(tmp_path: Path) -> None:
    sunk(tmp_path)
    path = tmp_path / "evaluations.jsonl"
    (told,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert told["losses"] == {"captions": 1.25, "empty": None} and told["step"] == 2
    assert told["samples"][0]["answer"] == SHOWN[0].answer and len(told["samples"][0]["pictures"]) == 1
    Metrics(tiny_run(tmp_path), None, from_step=1, from_progress=0.1).close()
    assert path.read_text() == ""
