"""A recorded step once more: the same loss from another layout, steps run to get there, and what is not the same."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from launch.replay import replay
from parallel.config import ParallelConfig
from tests.harness.evaluated import train_here
from tests.harness.lives import run_config
from tests.harness.runs import ROOT, make_data
from tests.prove.context import Worlds


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, worlds: Worlds) -> Path:
    """Five steps on PP2, of which the second and fourth are saved, and the last."""
    folder = tmp_path_factory.mktemp("replayed")
    run = run_config(folder / "run", make_data(folder / "data"), "stage2", ParallelConfig(pipeline=2), steps=5)
    run = replace(run, checkpoint=replace(run.checkpoint, every_steps=2, keep=99))
    worlds.run(2, train_here, run=run)
    return folder / "run"


def files(run_dir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("step", "first"), [(3, 2), (2, 0)])
def test_a_step_is_the_one_that_was_recorded(trained: Path, step: int, first: int) -> None:
    """From the checkpoint before it, and from the run's own beginning through a step in between."""
    before, said = files(trained), []
    found = replay(trained, step, tolerance=1e-5, tell=said.append)
    assert found.good and found.data["same_samples"] and found.data["from_step"] == first, found.lines
    assert bool(said) == (step - first > 1)
    samples = found.data["samples"]
    targets = sum(each["targets"] for each in samples)
    whole = sum(each["loss"] * each["targets"] for each in samples if each["targets"]) / targets
    assert whole == pytest.approx(found.data["recorded"]["loss"], rel=1e-5)
    assert targets == found.data["recorded"]["targets"]
    assert files(trained) == before, "a replay leaves the run as it was"


def test_a_step_that_differs_is_told(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "run"
    other.mkdir()
    (other / "checkpoints").symlink_to(trained / "checkpoints")
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    lines[2] |= {"loss": lines[2]["loss"] * 1.01}
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as end:
        main(["replay", str(other), "--step", "3"])
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert "further than 0.0001 from the record: loss\n" in said and "samples by loss, 12 of" in said
    assert "mixed:" in said


def test_the_command_of_the_page_runs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"^    triptych (replay .*)$", (ROOT / "docs/diagnosing.md").read_text(), re.MULTILINE)
    words = {"runs/mine": str(trained), "812": "5"}
    with pytest.raises(SystemExit) as end:
        main([*(words.get(word, word) for word in line.split()), "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert end.value.code == 0 and told["step"] == 5 and told["from_step"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, ()), "steps are counted from 1"),
        ((3, ("stage.steps=9",)), "leave out stage.steps: 5 -> 9"),
        ((6, ()), "--step 6: the run has come to step 5"),
    ],
)
def test_what_cannot_be_replayed_is_refused(trained: Path, arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replay(trained, *arguments)


@pytest.mark.parametrize("tolerance", [math.nan, math.inf, -1.0])
def test_no_tolerance_that_nothing_can_fail(trained: Path, tolerance: float) -> None:
    with pytest.raises(ValueError, match="is a relative difference; give 0 or more"):
        replay(trained, 3, tolerance=tolerance)


def test_a_tolerance_of_nothing_is_one(trained: Path, tmp_path: Path) -> None:
    """One last bit off the record, which the default lets pass."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    told[4]["loss"] *= 1 + 1e-9
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    assert replay(run, 5).good and not replay(run, 5, tolerance=0.0).good
