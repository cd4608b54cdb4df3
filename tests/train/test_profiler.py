"""A trace of the steps that were asked for, and of no others."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from tests.train.test_metrics import tiny_run
from train.config import ProfileConfig
from train.crosscheck import world_faults
from train.profiler import Profiler


def traced(folder: Path, steps: range, rank: int = 0, wanted: tuple[int, int] | None = (2, 3)) -> dict[str, list[str]]:
    """Names of files to the steps in them."""
    profiler = Profiler(replace(tiny_run(folder), profile=ProfileConfig(steps=wanted)), rank)
    for number in steps:
        with profiler.step(number):
            torch.ones(3).sum()
    profiler.close()
    found = {}
    for path in sorted((folder / "profile").glob("*")):
        names = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
        assert "aten::sum" in names
        found[path.name] = sorted({name for name in names if name.startswith("step ")})
    return found


def test_chosen_steps_are_traced(tmp_path: Path) -> None:
    assert traced(tmp_path / "whole", range(1, 5)) == {"steps_2_3_rank_0.json": ["step 2", "step 3"]}
    assert traced(tmp_path / "cut", range(1, 3)) == {"steps_2_2_rank_0.json": ["step 2"]}
    assert traced(tmp_path / "resumed", range(3, 5)) == {"steps_3_3_rank_0.json": ["step 3"]}
    assert traced(tmp_path / "other", range(1, 5), rank=1) == {}
    assert traced(tmp_path / "none", range(1, 5), wanted=None) == {}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "profile").touch()  # a folder that cannot be made ends no run
    assert traced(tmp_path / "full", range(1, 5)) == {}


def test_a_rank_that_there_is_not_is_refused(tmp_path: Path) -> None:
    run = replace(tiny_run(tmp_path), profile=ProfileConfig(steps=(2, 3), ranks=(0, 7)))
    assert world_faults(run, 2) == ["profile.ranks=[0, 7] names [7], and ranks are 0 to 1"]
    assert not world_faults(replace(run, profile=ProfileConfig(ranks=(7,))), 2), "nothing is traced"
