"""What only a CUDA device can show: the fused attention, and the same training step on NCCL and bf16."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from model.attention import PackedAttention, Segments
from parallel.config import KernelConfig, ParallelConfig
from parallel.world import joined_world
from tests.harness.compare import compare
from tests.harness.curves import BAND, farthest, learning_curve
from tests.harness.layouts import MODEL, train_on_layout

pytestmark = pytest.mark.gpu


class _Config:
    kv_channels = 64


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
@pytest.mark.parametrize("key_heads", [8, 2])
def test_fused_attention_agrees_with_the_loop(mask: AttnMaskType, key_heads: int) -> None:
    """Forward and gradients, grouped heads included, in bf16 against fp32."""
    segments = Segments(lengths=(5, 300, 1, 77), device=torch.device("cuda"))
    attention = PackedAttention(_Config(), 1, mask, "self")  # type: ignore[arg-type]
    total = sum(segments.lengths)
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(total, 1, 8, 64), (total, 1, key_heads, 64), (total, 1, key_heads, 64)]
    base = [torch.randn(shape, device="cuda", generator=generator) for shape in shapes]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype).requires_grad_() for x in base]
        out = attention(*inputs, None, packed_seq_params=segments)
        out.float().square().sum().backward()
        results.append([out.float(), *(x.grad.float() for x in inputs if x.grad is not None)])
    for exact, fused in zip(*results, strict=True):
        assert (exact - fused).norm() / exact.norm() < 2e-2


@pytest.mark.parametrize("mask", [AttnMaskType.causal, AttnMaskType.no_mask])
def test_fused_attention_is_used_only_where_asked_and_in_bf16(
    mask: AttnMaskType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways in bf16 agree to its rounding; fp32 never meets the kernel, which would need another precision."""
    calls = []
    fused = PackedAttention._fused
    monkeypatch.setattr(PackedAttention, "_fused", lambda *given: calls.append(given[1].dtype) or fused(*given))
    segments = Segments(lengths=(5, 300, 1, 77), device=torch.device("cuda"))
    generator = torch.Generator("cuda").manual_seed(0)
    base = [torch.randn((sum(segments.lengths), 1, 8, 64), device="cuda", generator=generator) for _ in range(3)]
    outputs = {}
    for dtype in (torch.bfloat16, torch.float32):
        for asked in (True, False):
            attention = PackedAttention(_Config(), 1, mask, "self", fused=asked)  # type: ignore[arg-type]
            outputs[dtype, asked] = attention(*(x.to(dtype) for x in base), None, packed_seq_params=segments).float()
    assert calls == [torch.bfloat16]
    assert torch.equal(outputs[torch.float32, True], outputs[torch.float32, False])
    exact = outputs[torch.float32, True]
    for asked in (True, False):
        assert (outputs[torch.bfloat16, asked] - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("switch", ["fused_norms", "fused_adamw"])
def test_five_steps_are_the_same_without_a_kernel(switch: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    plain = ParallelConfig(kernels=KernelConfig(**{switch: False}))
    with joined_world(120.0):
        records = [[train_on_layout(parallel, "stage2")] for parallel in (ParallelConfig(), plain)]
    difference = compare(*records)
    assert difference.largest < 1e-4, difference


@pytest.mark.parametrize("switch", ["fused_attention", "fused_norms", "fused_adamw"])
def test_bf16_losses_are_those_without_a_kernel(switch: str) -> None:
    plain = ParallelConfig(kernels=KernelConfig(**{switch: False}))
    with joined_world(120.0):
        fused, composed = (
            train_on_layout(parallel, "stage2", precision="bf16").losses for parallel in (ParallelConfig(), plain)
        )
    assert fused == pytest.approx(composed, rel=5e-3)


def test_bf16_learns_along_the_curve_of_fp32() -> None:
    with joined_world(120.0):
        exact, rounded = (learning_curve(0, precision, 60) for precision in ("fp32", "bf16"))
    assert exact[-1] < exact[0] / 2
    assert farthest(exact, rounded) <= BAND


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_hidden_messages_change_nothing(sequence_parallel: bool) -> None:
    """Two processes on two devices, fp32, with overlap and without."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ordered = os.environ | {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    command = [*launch, "-m", "tests.gpu.overlap", str(int(sequence_parallel))]
    subprocess.run(command, timeout=300, check=True, env=ordered)


def test_a_step_on_cuda_is_the_step_on_cpu() -> None:
    """fp32 on one GPU against fp32 on the CPU of a child process, all three parts trained."""
    blind = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.gpu.on_cpu"]
    child = subprocess.run(command, capture_output=True, timeout=300, check=True, env=blind)
    reference = pickle.loads(child.stdout)
    torch.backends.cuda.matmul.allow_tf32 = False
    with joined_world(120.0):
        measured = [train_on_layout(ParallelConfig(), "stage2")]
    difference = compare(reference, measured)
    assert difference.largest < 1e-4, difference


def test_bf16_with_fp32_accumulation_stays_close() -> None:
    """BF16_Optimizer and the fused kernels against fp32 on the same device."""
    wide = replace(MODEL, language=replace(MODEL.language, tie_embeddings=False))
    with joined_world(120.0):
        exact = train_on_layout(ParallelConfig(), "stage2", model=wide)
        rounded = train_on_layout(ParallelConfig(), "stage2", model=wide, precision="bf16")
    for a, b in zip(exact.losses, rounded.losses, strict=True):
        assert abs(a - b) / a < 1e-2
