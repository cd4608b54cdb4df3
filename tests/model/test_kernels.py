"""`parallel.kernels`: every switch is read, and computes the same with it as without it."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from launch.benchmark import kernel_gains
from model.layers import settle_overlap
from parallel.config import KernelConfig, ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.compare import compare
from tests.harness.kernels import kernels_in_use, norm_rounding
from tests.harness.layouts import MODEL, train_on_layout
from tests.prove.context import LAYOUTS, Worlds
from train.resolve import compose

PLAIN = KernelConfig(fused_attention=False, fused_norms=False, fused_adamw=False, overlap_tensor=False)


def plain(layout: str, **switches: bool) -> dict[str, Any]:
    """World size and layout, with the given switches or all of them off."""
    size, parallel = LAYOUTS[layout]
    kernels = KernelConfig(**switches) if switches else PLAIN
    return {"size": size, "parallel": replace(parallel, kernels=kernels)}


@pytest.mark.parametrize("layout", ["TP2", "TP2+SP"])
def test_every_switch_reaches_what_it_switches(layout: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    for fused in worlds.run(size, kernels_in_use, parallel=parallel):
        assert (fused.attention, fused.adamw) == ({True}, True)
        assert fused.norms == {"RMSNorm", "LayerNorm"}
        assert fused.pending > 0
    for composed in worlds.run(**plain(layout), task=kernels_in_use):
        assert (composed.attention, composed.adamw) == ({False}, False)
        assert composed.norms == {"PlainRMSNorm", "PlainLayerNorm", "ComposedLayerNorm"}
        assert composed.pending == 0


@pytest.mark.parametrize(
    ("layout", "stage", "switches"),
    [
        ("one process", "stage2", {"fused_norms": False}),
        ("one process", "stage2", {"fused_adamw": False}),
        ("TP2", "stage2", {"overlap_tensor": False}),
        ("TP2+SP", "stage2", {"overlap_tensor": False}),
        ("TP2+SP", "stage1", {"overlap_tensor": False}),
        ("TP2xPP2+SP", "stage3", {}),
    ],
)
def test_the_plain_way_computes_the_same(
    layout: str,
    stage: str,
    switches: dict[str, bool],
    worlds: Worlds,
) -> None:
    """Fused attention has no CPU kernel: tests/gpu compares it."""
    expected = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage=stage)
    difference = compare(expected, worlds.run(**plain(layout, **switches), task=train_on_layout, stage=stage))
    assert difference.largest < 1e-5, difference


def test_bf16_is_as_precise_the_plain_way(worlds: Worlds) -> None:
    assert norm_rounding() < 2.5e-3
    fused, composed = (
        worlds.run(**kernels, task=train_on_layout, stage="stage2", precision="bf16")[0].losses
        for kernels in (plain("one process", fused_norms=True), plain("one process"))
    )
    assert fused == pytest.approx(composed, rel=1e-3) and fused != composed


def test_the_launch_order_is_asked_for_where_messages_are_to_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    tower, cuda = torch.nn.Linear(2, 2), torch.device("cuda")
    parallel = ParallelConfig(tensor=2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    with pytest.raises(ValueError, match=r"CUDA_DEVICE_MAX_CONNECTIONS is 8.*overlap_tensor=false"):
        settle_overlap(tower, parallel, cuda)
    settle_overlap(tower, replace(parallel, kernels=KernelConfig(overlap_tensor=False)), cuda)
    settle_overlap(tower, parallel, torch.device("cpu"))
    settle_overlap(tower, ParallelConfig(), cuda)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    settle_overlap(tower, parallel, cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    settle_overlap(tower, parallel, cuda)


def test_every_switch_is_on_unless_a_recipe_says_otherwise() -> None:
    assert all(getattr(KernelConfig(), field.name) is True for field in fields(KernelConfig))


def measured_gains(parallel: ParallelConfig) -> dict[str, dict[str, float]]:
    """One pair of steps for each switch that changes anything on this rank."""
    run = compose("quickstart_stage2", ["precision=bf16"])
    run = replace(run, model=MODEL, parallel=parallel, stage=replace(run.stage, steps=100))
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        return kernel_gains(run, groups, tokens_per_row=600, rows=1, pairs=1)


def test_the_benchmark_times_the_switches_that_change_anything(worlds: Worlds) -> None:
    size, parallel = LAYOUTS["TP2"]
    for gains in worlds.run(size, measured_gains, parallel=parallel):
        assert list(gains) == ["fused_norms", "fused_adamw", "overlap_tensor"]
        for gain in gains.values():
            # Of one pair the median ratio is the ratio of medians.
            assert gain["plain_over_fused"] == pytest.approx(gain["plain_seconds"] / gain["fused_seconds"])
