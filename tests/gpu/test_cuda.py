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
from parallel.config import ParallelConfig
from parallel.world import joined_world
from tests.harness.compare import compare
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
