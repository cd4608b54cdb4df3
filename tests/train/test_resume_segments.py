"""`triptych resume --allow`, once through the launch script: other sources, another batch, another world."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.plan.order import samples_at
from data.plan.used import used_from_dict
from launch.jobs.resume import plan_resume
from parallel.config import ParallelConfig
from tests.data.conftest import clip_bytes, make_samples
from tests.harness.run_faults import well
from tests.harness.runs import STEPS, make_data, read_recipe, resume, write_recipe
from tests.prove.context import Worlds
from train.checkpoint.load import find_commit
from train.segments import planned_step

SIZES = {"mixed": 40, "more": 14}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.timeout(600)  # of seconds on a host that has nothing else to do
def test_a_run_goes_on_with_other_data_and_loses_no_sample(tmp_path: Path, worlds: Worlds) -> None:
    """Another mixture, window and batch; on one process as before, and on two that do not divide the three rows."""
    data = make_data(tmp_path / "data", SIZES["mixed"])
    write_shards(data / "more", "more", make_samples(SIZES["more"], clip_bytes()), samples_per_shard=12)
    build_index(data / "more", load_tokenizer(data / "tokenizer"))
    one = write_recipe(tmp_path / "recipe", data, "stage2", ParallelConfig(), processes=1)
    run_dir, alone = tmp_path / "run", tmp_path / "alone"
    well(worlds.nursery.live(replace(read_recipe(one), run_dir=str(run_dir), stop_after_steps=2), 1))
    shutil.copytree(run_dir, alone)
    before = find_commit(alone).path
    mixture = f"data.sources=[{{name: more, path: {data / 'more'}}}, {{name: mixed, path: {data / 'mixed'}}}]"
    asked = (mixture, "data.window=12", "data.rows_per_step=3")
    allow = [f"data.{key}" for key in ("sources", "window", "rows_per_step")]
    options = [word for key in allow for word in ("--allow", key)]
    resume(replace(one, processes=2), run_dir, *options, *asked, timeout=280.0)
    well(worlds.nursery.live(plan_resume(alone, asked, allow=allow, processes=1).run, 1))

    commit = find_commit(run_dir)
    assert [segment["first_step"] for segment in commit.state["segments"]] == [1, 3]
    assert "new_segment: []" in commit.recipe
    used: Counter[tuple[str, int]] = Counter()
    for line in metrics(run_dir):
        step = planned_step(commit.state, line["step"])
        assert step.digest() == line["rows"], line["step"]
        names = ("mixed",) if line["step"] < 3 else ("more", "mixed")
        used.update((names[source], index) for row in step.rows for source, index in row.samples)
    for name, drawn in used_from_dict(commit.state["used"]).items():
        places = np.setdiff1d(np.arange(drawn.count), drawn.left)
        expected = Counter((name, index) for index in samples_at(3, name, SIZES[name], places).tolist())
        assert expected == Counter({key: count for key, count in used.items() if key[0] == name})
        assert drawn.count > 0
    pairs = list(zip(metrics(run_dir), metrics(alone), strict=True))
    assert [ours["step"] for ours, _ in pairs] == list(range(1, STEPS + 1))
    for ours, theirs in pairs:
        assert ours["rows"] == theirs["rows"]
        for key in ("loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)

    # A step draws nothing, so states are what they were; on another layout they begin anew.
    states = [path / "random.00000.state" for path in (before, find_commit(alone).path, commit.path)]
    same = [path.read_bytes() == states[0].read_bytes() for path in states]
    assert same == [True, True, False]
