"""`parallel.split=auto` follows from the recipe's own samples, and from nothing that was read."""

from dataclasses import replace
from pathlib import Path

import pytest

import train.balance
from data.encoding.tokenizer import load_tokenizer
from data.index.build import open_index
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan
from model.flops import Work, row_work
from parallel.config import ParallelConfig
from tests.harness.layouts import STAGES
from tests.harness.runs import data_config, make_data, model_config
from train.balance import mixture_work, settled_parallel, split_line
from train.config import RunConfig
from train.resolve import compose


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("balance"))


def run_on(folder: Path, parallel: ParallelConfig, stage: str = "stage2") -> RunConfig:
    run = compose("quickstart_stage2")
    stage_config = replace(run.stage, trainable=STAGES[stage])
    return replace(run, model=model_config(), data=data_config(folder), parallel=parallel, stage=stage_config)


def test_the_mixture_is_what_the_rows_hold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data_config(folder)
    indexes = open_indexes(config)
    plan = Plan(config, indexes)
    reader = build_reader(config, load_tokenizer(config.tokenizer), indexes)
    expected = Work()
    for planned in plan.step(Cursor()).rows:
        row, _ = reader.read(planned)
        grids = [(t, h, w) for t, h, w in row.grids.tolist()]
        expected += row_work(row.segment_lengths.tolist(), grids, int((row.targets >= 0).sum()))
    reader.close()
    monkeypatch.setattr(train.balance, "_SAMPLES", 1)
    assert mixture_work(plan, indexes) == expected and expected.patches and expected.tokens


def test_auto_becomes_numbers_that_depend_on_the_stage(folder: Path) -> None:
    parallel = ParallelConfig(pipeline=2, split="auto")
    plan, indexes = Plan(data_config(folder), open_indexes(data_config(folder))), open_indexes(data_config(folder))
    splits = {}
    for stage in STAGES:
        run = run_on(folder, parallel, stage)
        settled = settled_parallel(run, plan, indexes)
        assert isinstance(settled.split, tuple) and sum(settled.split) == 4
        splits[stage] = settled.split
        assert f"{list(settled.split)} language layers" in split_line(run, settled, plan, indexes)
    assert splits["stage1"][0] <= splits["stage3"][0]  # a frozen tower costs a third


@pytest.mark.parametrize("split", [None, (1, 3)])
def test_other_splits_stay(folder: Path, split: tuple[int, ...] | None) -> None:
    parallel = ParallelConfig(pipeline=2, split=split)
    indexes = [open_index(folder / "mixed")]
    assert settled_parallel(run_on(folder, parallel), Plan(data_config(folder), indexes), indexes) is parallel


def test_one_pipeline_stage_needs_no_split(folder: Path) -> None:
    indexes = [open_index(folder / "mixed")]
    run = run_on(folder, ParallelConfig(split="auto"))
    assert settled_parallel(run, Plan(data_config(folder), indexes), indexes) == ParallelConfig()
