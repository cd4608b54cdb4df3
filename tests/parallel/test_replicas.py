"""Copies of one weight on tensor ranks: drift is found, averaged away, and what has not parted keeps its bits."""

import math
from dataclasses import dataclass

import pytest
import torch

from parallel.config import ParallelConfig
from parallel.replicas import have_parted, largest_drift, mean_copy
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import start
from tests.prove.context import Worlds
from train.state import TrainState
from train.step import train_step

WEIGHT, NORM, FROZEN = "merger.fc1.weight", "merger.norm.weight", "vision.patch_embed.weight"


@dataclass(kw_only=True)
class Seen:
    before: float
    drift: float
    averaged: list[str]
    after: float
    again: list[str]
    weights: dict[str, torch.Tensor]
    kept: bool
    master_is_weight: bool


def drift_and_repair(parallel: ParallelConfig, precision: str, plant: bool) -> Seen:
    """Two steps of stage 3, in which the tower is frozen; tensor rank 1 may then leave the others."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage3", groups, precision=precision)
        state = TrainState()
        for _ in range(2):
            train_step(made.parts, state)
        optimizer, boxes = made.optimizer, made.built.boxes
        copies = [parameter for _, parameter in optimizer.replicated()]
        before = largest_drift(copies, groups)
        bits = {name: parameter.detach().clone() for name, parameter in optimizer.replicated()}
        if plant and groups.tp_rank == 1:
            with torch.no_grad():
                for name, parameter in optimizer.replicated():
                    if boxes[name].name in (WEIGHT, FROZEN):
                        parameter.mul_(1.25)
                for share in optimizer.fragments():
                    if boxes[share.param_name].name == WEIGHT:
                        share.tensors["master"].mul_(1.25)
                    if boxes[share.param_name].name == NORM:
                        share.tensors["exp_avg"].add_(1.0)
        drift = largest_drift(copies, groups)
        averaged = optimizer.average_replicas()
        named = {boxes[name].name: parameter.detach().clone() for name, parameter in optimizer.replicated()}
        kept = all(torch.equal(p, bits[name]) for name, p in optimizer.replicated() if name not in averaged)
        shares = {share.param_name: share for share in optimizer.fragments()}
        parameters = dict(made.built.module.named_parameters())
        same = [
            torch.equal(
                share.tensors["master"].to(parameters[name].dtype),
                parameters[name].detach().view(-1)[share.start : share.start + share.numel],
            )
            for name, share in shares.items()
            if name in averaged
        ]
        seen = Seen(
            before=before,
            drift=drift,
            averaged=[boxes[name].name for name in averaged],
            after=largest_drift(copies, groups),
            again=optimizer.average_replicas(),
            weights=named,
            kept=kept,
            master_is_weight=all(same),
        )
        optimizer.close()
        return seen


@pytest.mark.parametrize(
    ("size", "parallel", "precision"),
    [
        (2, ParallelConfig(tensor=2), "fp32"),
        (2, ParallelConfig(tensor=2, sequence_parallel=True), "bf16"),
        (4, ParallelConfig(tensor=2), "bf16"),
        (4, ParallelConfig(tensor=2, pipeline=2), "fp32"),
    ],
)
def test_drift_is_found_and_repaired(size: int, parallel: ParallelConfig, precision: str, worlds: Worlds) -> None:
    ranks = worlds.run(size, drift_and_repair, parallel=parallel, precision=precision, plant=True)
    first = [rank for rank in ranks if WEIGHT in rank.weights]
    assert len(first) == size // parallel.pipeline
    for rank in ranks:
        assert rank.before == 0.0
        # 1.25 lies a fifth of itself from 1; bf16 rounds it.
        assert rank.drift == pytest.approx(1 / 5, rel=0.02)
        assert rank.after == 0.0 and rank.again == [] and rank.kept and rank.master_is_weight
    assert all(set(rank.averaged) == {WEIGHT, NORM, FROZEN} for rank in first)
    assert all(rank.averaged == [] for rank in ranks if WEIGHT not in rank.weights)
    for name in (WEIGHT, NORM, FROZEN):
        assert all(torch.equal(rank.weights[name], first[0].weights[name]) for rank in first)


def test_nothing_is_touched_where_nothing_has_parted(worlds: Worlds) -> None:
    parallel = ParallelConfig(tensor=2, sequence_parallel=True)
    for rank in worlds.run(2, drift_and_repair, parallel=parallel, precision="bf16", plant=False):
        assert rank.drift == 0.0 and rank.averaged == [] and rank.kept


def measure_copies(changes: dict[int, tuple[int, float]], dtype: torch.dtype) -> tuple:
    """A world of four tensor ranks with equal copies, of which some have one element changed: {rank: (where, value)}.

    Returns drift, whether they have parted, and the mean (or the error's text).
    """
    with model_parallel(ParallelConfig(tensor=4), pick_device(), seed=0) as groups:
        generator = torch.Generator().manual_seed(0)
        copies = [torch.randn(37, 11, generator=generator).to(dtype), torch.zeros(5, dtype=dtype)]
        whole = copies[0].clone()
        if groups.tp_rank in changes:
            where, value = changes[groups.tp_rank]
            copies[0].view(-1)[where] = value
        mine = copies[0].clone()
        parted = have_parted(copies, groups)
        drift = largest_drift(copies, groups)
        assert torch.equal(copies[0].nan_to_num(), mine.nan_to_num())
        try:
            mean: torch.Tensor | str = mean_copy(copies[0], groups)
        except ValueError as error:
            mean = str(error)
        return drift, parted, mean, whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_equal_copies_on_four_ranks_have_no_drift_and_are_their_own_mean(dtype: torch.dtype, worlds: Worlds) -> None:
    """A sum of three equal fp32 numbers rounds: a mean taken of it is another number."""
    for drift, parted, mean, whole in worlds.run(4, measure_copies, changes={}, dtype=dtype):
        assert drift == 0.0 and not parted and torch.equal(mean, whole.float())


@pytest.mark.parametrize("rank", [0, 2])
def test_one_element_on_one_of_four_ranks_is_seen_by_all(rank: int, worlds: Worlds) -> None:
    for drift, parted, mean, whole in worlds.run(4, measure_copies, changes={rank: (50, 9.0)}, dtype=torch.float32):
        changed = whole.clone()
        changed.view(-1)[50] = 9.0
        assert parted and drift == pytest.approx(float((changed - whole).norm() / changed.norm()), rel=1e-5)
        assert mean.view(-1)[50].item() == pytest.approx((9.0 + 3 * whole.view(-1)[50].item()) / 4, rel=1e-6)
        others = torch.arange(whole.numel()) != 50
        assert torch.equal(mean.view(-1)[others], whole.view(-1)[others])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rank", [0, 3])
def test_a_copy_that_is_not_finite_is_infinitely_far_and_is_not_averaged(
    value: float, rank: int, worlds: Worlds
) -> None:
    for drift, parted, mean, _ in worlds.run(4, measure_copies, changes={rank: (7, value)}, dtype=torch.bfloat16):
        assert drift == math.inf and parted
        assert isinstance(mean, str) and "(37, 11)" in mean and "not finite on one of 4 tensor ranks" in mean
