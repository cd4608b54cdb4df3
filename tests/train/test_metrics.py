"""What a run tells about itself, also after it was cut short."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.loading.rows import ReadStats
from data.plan.plan import Cursor, RowPlan, StepPlan
from model.flops import Work, step_flops
from train.batches import SourceCounts
from train.config import RunConfig
from train.metrics import Metrics
from train.resolve import compose
from train.state import TrainState
from train.step import SourceReport, StepReport

WORK = Work(tokens=400, patches=560, token_pairs=20_000, patch_pairs=30_000)
SOURCES = [
    SourceReport(
        counts=SourceCounts(samples=3 * (n == 0), tokens=400 * (n == 0), targets=100 * (n == 0)), loss=math.nan
    )
    for n in range(len(compose("quickstart_stage2").data.sources))
]
SOURCES[0] = replace(SOURCES[0], loss=1.5)
REPORT = StepReport(
    loss=1.5,
    grad_norm=0.5,
    part_norms={"language": 0.5},
    rates={"language": 1e-3},
    targets=100,
    samples=12,
    bad=1,
    work=WORK,
    computed=True,
    sources=SOURCES,
    bubble=0.25,
    skipped=None,
    plan=StepPlan(rows=(), next_cursor=Cursor()),
    data_seconds=0.0,
    reading=ReadStats(),
)


def tiny_run(folder: Path) -> RunConfig:
    return replace(compose("quickstart_stage2", ["log.wandb=disabled", "log.every_steps=1"]), run_dir=str(folder))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_keeps_the_lines_it_stands_on(tmp_path: Path) -> None:
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 4, "lo')  # the host was lost while it wrote
    metrics = Metrics(tiny_run(tmp_path), None, from_step=2, from_progress=0.5)
    metrics.record(TrainState(step=3), REPORT, progress=0.75)
    metrics.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[-1]["loss"] == 1.5


def test_damaged_lines_are_left_out_and_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = b'{"step": 1, "loss\n\xff\xfe\n[]\n{"loss": 1.5}\n{"step": "2"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + bad + b'{"step": 2}\n{"step": 3}\n')
    Metrics(tiny_run(tmp_path), None, from_step=2, from_progress=0.5).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{tmp_path / 'metrics.jsonl'}: 5 of 8 lines are damaged, and are left out"]


def test_what_is_not_finite_is_null_in_every_line(tmp_path: Path) -> None:
    metrics = Metrics(tiny_run(tmp_path), None, from_step=0, from_progress=0.0)
    odd = replace(REPORT, part_norms={"language": math.inf}, rates={"language": math.nan})
    metrics.record(TrainState(step=1), odd, progress=0.5, drift=math.nan)
    metrics.record_beside({"step": 1, "fault": None, "command": {"acc": math.nan, "all": [math.inf, 1.0]}})
    metrics.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (step,) = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").open()]
    assert step["part_norms"] == step["rates"] == {"language": None} and step["replica_drift"] is None
    (beside,) = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "evaluations.jsonl").open()]
    assert beside["command"] == {"acc": None, "all": [None, 1.0]}


def test_no_step_waits_for_longer_than_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another replica's data began to be waited for before this rank's clock did."""
    metrics = Metrics(tiny_run(tmp_path), None, from_step=0, from_progress=0.0)
    metrics.record(TrainState(step=1), replace(REPORT, data_seconds=1e6), progress=0.5)
    metrics.close()
    (line,) = lines(tmp_path)
    assert line["data_seconds"] == line["step_seconds"] and "data wait 100%" in capsys.readouterr().out


def test_a_step_left_out_is_recorded_with_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (RowPlan(samples=((0, 7), (1, 3)), num_tokens=9, num_patches=0, cost=1),)
    left_out = replace(
        REPORT, loss=math.nan, grad_norm=math.inf, skipped="loss is nan", plan=StepPlan(rows=rows, next_cursor=Cursor())
    )
    run = tiny_run(tmp_path)
    metrics = Metrics(run, None, from_step=0, from_progress=0.0)
    for step, report in ((1, REPORT), (2, left_out), (3, left_out)):
        metrics.record(TrainState(step=step), report, progress=0.1 * step)
    metrics.close()
    names = [source.name for source in run.data.sources]
    told = {"stage": "stage2", "reason": "loss is nan", "rows": [[f"{names[0]}:7", f"{names[1]}:3"]]}
    found = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert found == [told | {"step": 2}, told | {"step": 3}]
    assert [line["skipped"] for line in lines(tmp_path)] == [None, "loss is nan", "loss is nan"]
    assert lines(tmp_path)[1]["loss"] is None and lines(tmp_path)[1]["grad_norm"] is None  # JSON has no nan
    assert "skipped, loss is nan" in capsys.readouterr().out
    # A run that goes on from step 2 does step 3 again.
    Metrics(run, None, from_step=2, from_progress=0.2).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == [2]


def test_time_left_counts_what_this_start_has_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("train.metrics.time", SimpleNamespace(perf_counter=lambda: next(clock), time=time.time))
    metrics = Metrics(tiny_run(tmp_path), None, from_step=50, from_progress=0.5)
    metrics.record(TrainState(step=60), REPORT, progress=0.6)  # a tenth in 10 s, four tenths to go
    metrics.close()
    assert "40 s left" in capsys.readouterr().out


def test_mfu_is_a_share_of_what_it_is_given(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    metrics = Metrics(run, 1e12, from_step=0, from_progress=0.0)
    metrics.record(TrainState(step=1), REPORT, progress=0.1)
    metrics.close()
    (line,) = lines(tmp_path)
    flops = step_flops(run.model, run.stage.trainable, WORK)
    assert line["mfu"] == pytest.approx(flops / line["step_seconds"] / 1e12)


def test_a_step_with_nothing_to_learn_counts_no_flops(tmp_path: Path) -> None:
    metrics = Metrics(tiny_run(tmp_path), 1e12, from_step=0, from_progress=0.0)
    metrics.record(TrainState(step=1), REPORT, progress=0.1)
    empty = replace(REPORT, loss=math.nan, grad_norm=0.0, computed=False, skipped="no token is supervised")
    metrics.record(TrainState(step=2), empty, progress=0.2)
    metrics.close()
    done, left_out = lines(tmp_path)
    assert done["flops_per_second"] > 0 and (left_out["flops_per_second"], left_out["mfu"]) == (0, 0)
