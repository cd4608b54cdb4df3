"""Held-out sources are looked at before a run starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.config import SourceConfig
from parallel.config import ParallelConfig
from tests.harness.evaluated import MOST, evaluated_run, write_held_out
from tests.harness.runs import make_data
from train.config import EvaluateConfig
from train.held_out import held_out
from train.ready import file_faults


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def test_what_does_not_fit_is_refused_beforehand(tmp_path: Path, data: Path) -> None:
    held = write_held_out(data, data)
    run = evaluated_run(tmp_path / "run", data, held, ParallelConfig())
    assert file_faults(run) == []
    missing = SourceConfig(name="nowhere", path=str(tmp_path / "nowhere"))
    gone = replace(run, evaluate=replace(run.evaluate, sources=(missing,)))
    assert ["nowhere" in fault for fault in file_faults(gone)] == [True]
    assert file_faults(replace(gone, evaluate=EvaluateConfig())) == []
    blind = replace(run, model=replace(run.model, vision=None))
    assert any("these sources hold pictures or clips: pictures;" in fault for fault in file_faults(blind))


def test_each_source_gives_as_many_as_asked_for_or_all_it_has(data: Path) -> None:
    held = tuple(replace(source, weight=7.0) for source in write_held_out(data / "again", data))
    config, indexes = held_out(
        evaluated_run(data, data, held, ParallelConfig()).data, EvaluateConfig(sources=held, samples=MOST)
    )
    assert [source.weight for source in config.sources] == [9.0, 13.0] and config.window == 22
    assert [len(index) for index in indexes] == [9, 25]
