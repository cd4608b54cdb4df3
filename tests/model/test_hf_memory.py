"""What a Hugging Face folder costs while it is read and written: smaller than in the proof, the same measures."""

import mmap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parallel.config import ParallelConfig
from tests.harness.hf_memory import LARGE, ExportCost, export_cost, import_cost, write_large
from tests.harness.memory import CannotMeasure, peak_memory
from tests.harness.parity import IDS
from tests.harness.roundtrip import write_tokenizer
from tests.harness.world import World
from tests.prove.model_weights_defects import mapping_kept, shards_kept, whole_tensors_read

MIDDLE = replace(LARGE, language=replace(LARGE.language, num_layers=2, vocab_size=9001, ffn_size=3072))
"""71 M parameters; the largest stored tensors have 28 MB in bf16."""
ROOM = 0.2
"""Of the largest tensor, for what else is allocated meanwhile."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("middle")
    write_tokenizer(base / "tokenizer", IDS)
    yield write_large(base / "hf", base / "tokenizer", torch.bfloat16, MIDDLE)


# Processes that no other test has used: what they left in memory would be used again unseen, or given back meanwhile.
@pytest.fixture(scope="module")
def one() -> Iterator[World]:
    world = World(1)
    yield world
    world.close()


@pytest.fixture(scope="module")
def two() -> Iterator[World]:
    world = World(2)
    yield world
    world.close()


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(tensor=2), ParallelConfig(pipeline=2)], ids=["tensor ranks", "pipeline stages"]
)
def test_a_rank_needs_its_shard_and_one_tensor(parallel: ParallelConfig, folder: Path, two: World) -> None:
    costs = two.run(import_cost, parallel=parallel, folder=folder, config=MIDDLE, precision="fp32")
    for cost in costs:
        assert cost.growth > 0.9 * cost.own, "the shard itself was not seen"
        assert cost.excess <= 1 + ROOM
        assert cost.elements_beyond == 0
        assert cost.pages_beyond <= 2e6 * cost.slices


def planted_import(folder: Path, defect: str) -> object:
    mend = {"mapping": mapping_kept, "whole": whole_tensors_read}[defect]()
    try:
        parallel = ParallelConfig(tensor=2)
        return import_cost(parallel=parallel, folder=folder, config=MIDDLE, precision="bf16")
    finally:
        mend()


def planted_export(folder: Path) -> ExportCost:
    mend = shards_kept()
    try:
        return _export(folder)
    finally:
        mend()


def _export(folder: Path) -> ExportCost:
    return export_cost(folder=folder, tokenizer=folder.parent / "tokenizer", config=MIDDLE, shards=4)


def test_export_holds_a_shard_not_the_model(folder: Path, one: World) -> None:
    (cost,) = one.run(_export, folder=folder)
    assert cost.growth > 0.9 * cost.shard, "the shard itself was not seen"
    assert cost.growth < 0.8 * cost.model
    assert cost.growth - cost.shard <= (2 + ROOM) * cost.largest


def test_the_measures_see_what_they_are_for(folder: Path, one: World, two: World) -> None:
    assert all(cost.excess > 1 + ROOM for cost in two.run(planted_import, folder=folder, defect="mapping"))
    assert all(cost.elements_beyond > 1e6 for cost in two.run(planted_import, folder=folder, defect="whole"))
    (cost,) = one.run(planted_export, folder=folder)
    assert cost.growth > 0.8 * cost.model and cost.growth - cost.shard > (2 + ROOM) * cost.largest


def test_peak_memory_is_what_was_held_at_once() -> None:
    size, page = 40_000_000, 4096
    with peak_memory() as peak:
        for _ in range(3):
            # Asked of the kernel itself: an allocator may keep what was freed and take more for the next.
            with mmap.mmap(-1, size) as block:
                block[::page] = b"1" * -(-size // page)
    # The kernel counts pages a processor at a time and may be some hundred kB behind.
    assert 39e6 <= peak.growth < 60e6


def test_a_kernel_that_cannot_measure_gives_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.harness.memory._CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    with pytest.raises(CannotMeasure, match="cannot be reset"), peak_memory():
        pass
