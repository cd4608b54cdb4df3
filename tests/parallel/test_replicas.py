"""Copies of one weight on tensor ranks: drift is found, averaged away at a save, and what agrees keeps its bits."""

import math
from pathlib import Path

import pytest
import torch

from parallel.config import ParallelConfig
from tests.harness.copies import DRIFT, WATCHED, measure_copies, watch_drift
from tests.harness.reduction import files_apart, move, reduce_and_go_on
from tests.prove.context import Worlds

SP = ParallelConfig(tensor=2, sequence_parallel=True)


def test_a_healthy_run_has_no_drift_and_what_is_planted_is_found(worlds: Worlds) -> None:
    for rank in worlds.run(4, watch_drift, parallel=SP, stage="stage3", precision="bf16"):
        assert rank.healthy == rank.afterwards == 0.0 and rank.elements_apart == 0 and not rank.unwatched
        for name in WATCHED:
            assert rank.found[name] == pytest.approx([DRIFT, DRIFT], rel=0.01), name


@pytest.mark.parametrize(
    ("size", "parallel", "stage", "precision"),
    [
        (2, SP, "stage2", "bf16"),
        (4, ParallelConfig(tensor=2), "stage3", "fp32"),
        (4, ParallelConfig(tensor=2, pipeline=2), "stage3", "bf16"),
    ],
)
def test_a_save_makes_copies_one_again_in_the_run_and_the_file(
    size: int, parallel: ParallelConfig, stage: str, precision: str, worlds: Worlds, tmp_path: Path
) -> None:
    """Weight, master and moments alike, so that a run that is resumed has the bits of the one that went on."""
    arguments = {"stage": stage, "precision": precision, "folder": tmp_path, "recipe": ""}
    ranks = worlds.run(size, reduce_and_go_on, parallel=parallel, **arguments)
    assert sum(rank.planted for rank in ranks) > 1000
    for rank in ranks:
        assert (rank.weights, rank.masters, rank.moments, rank.others, rank.file, rank.resumed) == (0,) * 6
        assert rank.mean_error < 1e-6


def test_another_layout_reads_what_was_reduced(worlds: Worlds, tmp_path: Path) -> None:
    arguments = {"stage": "stage2", "precision": "bf16", "recipe": ""}
    worlds.run(2, reduce_and_go_on, parallel=SP, folder=tmp_path, **arguments)
    places = {"source": tmp_path / "stopped", "target": tmp_path / "moved"}
    worlds.run(2, move, parallel=ParallelConfig(pipeline=2), **places, **arguments)
    assert files_apart(tmp_path / "stopped", tmp_path / "moved") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_equal_copies_on_four_ranks_have_no_drift_and_are_their_own_mean(dtype: torch.dtype, worlds: Worlds) -> None:
    for rank in worlds.run(4, measure_copies, ranks=4, changes={}, dtype=dtype):
        assert rank.drift == 0.0 and not rank.parted and rank.mean is not None
        assert torch.equal(rank.mean, rank.first.float())


@pytest.mark.parametrize("changed", [0, 2])
def test_one_element_on_one_of_four_ranks_is_seen_by_all(changed: int, worlds: Worlds) -> None:
    for rank in worlds.run(4, measure_copies, ranks=4, changes={changed: (50, 9.0)}, dtype=torch.float32):
        first = rank.first.view(-1)
        other = first.clone()
        other[50] = 9.0
        assert rank.parted and rank.drift == pytest.approx(float((other - first).norm() / other.norm()), rel=1e-5)
        assert rank.mean is not None
        mean = rank.mean.view(-1)
        assert mean[50].item() == pytest.approx((9.0 + 3 * first[50].item()) / 4, rel=1e-6)
        equal = torch.arange(len(first)) != 50
        assert torch.equal(mean[equal], first[equal])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("changed", [0, 3])
def test_a_copy_that_is_not_finite_is_infinitely_far_and_is_not_averaged(
    value: float, changed: int, worlds: Worlds
) -> None:
    for rank in worlds.run(4, measure_copies, ranks=4, changes={changed: (7, value)}, dtype=torch.bfloat16):
        assert rank.drift == math.inf and rank.parted and rank.mean is None
        assert rank.refused is not None and "(37, 11)" in rank.refused and "on one of 4 tensor ranks" in rank.refused
