"""Published tensor lists and configs (tests/model/golden) against what export would write."""

import json
from pathlib import Path

import pytest

from tests.harness import golden
from tests.harness.golden import SIZES


@pytest.mark.parametrize("size", SIZES)
def test_tensors_are_the_published_ones(size: str) -> None:
    told = golden.golden_tensors(size)
    assert len(told) == {"2b": 729, "7b": 730, "72b": 1354}[size]
    assert told["visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert ("lm_head.weight" in told) == (size != "2b")
    assert golden.tensors_that_differ(size) == []
    assert golden.transformers_differs(size) == []


@pytest.mark.parametrize("size", SIZES)
def test_configs_are_the_published_ones(size: str) -> None:
    assert golden.keys_that_differ(size) == []
    assert golden.transformers_reads_otherwise(size) == []


def test_every_allowed_difference_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = set(golden.ALLOWED)
    monkeypatch.setattr(golden, "ALLOWED", {})
    assert set(golden.keys_that_differ("7b")) == allowed


def test_an_allowed_key_may_not_have_any_value(monkeypatch: pytest.MonkeyPatch) -> None:
    write = golden.preprocessor_config
    wrong = {"do_rescale": False, "do_normalize": False}
    monkeypatch.setattr(golden, "preprocessor_config", lambda *sizes: write(*sizes) | wrong)
    assert golden.keys_that_differ("7b") == ["preprocessor_config.do_normalize", "preprocessor_config.do_rescale"]


def test_a_size_that_is_not_published_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = golden.golden("2b")
    told["tensors"]["model.norm.weight"] = [1535]
    told["config"]["rope_theta"] = 1e4
    (tmp_path / "qwen2vl_2b.json").write_text(json.dumps(told))
    (tmp_path / "beside.json").write_text((golden.FOLDER / "beside.json").read_text())
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.tensors_that_differ("2b") == ["model.norm.weight"]
    assert golden.keys_that_differ("2b") == ["config.rope_theta"]
