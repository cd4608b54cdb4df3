"""The plan's bytes against what CUDA's allocator had given out at most."""

import pytest

from model.config import LanguageConfig, ModelConfig, VisionConfig
from parallel.config import ParallelConfig, RecomputeConfig
from parallel.world import joined_world
from tests.harness.planned_memory import allocated_in_step

pytestmark = pytest.mark.gpu

LARGE = ModelConfig(
    name="some GB, beside which cuBLAS's 32 MB are little",
    vision=VisionConfig(depth=8, embed_dim=640, num_heads=8),
    language=LanguageConfig(
        hidden_size=1536,
        num_layers=8,
        num_heads=12,
        num_kv_heads=2,
        ffn_size=8960,
        vocab_size=32000,
        mrope_section=(16, 24, 24),
        tie_embeddings=True,
    ),
)
ROWS = [(4096, [(1, 64, 64), (1, 48, 64)]), (3500, [(2, 48, 48)]), (4096, []), (3900, [(1, 96, 96)])]


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
@pytest.mark.parametrize(
    ("precision", "again"), [("fp32", "none"), ("bf16", "none"), ("bf16", "selective"), ("bf16", "full")]
)
def test_planned_bytes_are_those_allocated(stage: str, precision: str, again: str) -> None:
    recompute = RecomputeConfig(vision=again, language=again)  # type: ignore[arg-type]
    with joined_world(120.0):
        peak = allocated_in_step(ParallelConfig(recompute=recompute), stage, precision, LARGE, ROWS)
    assert abs(peak.error) <= 0.10, f"{peak.measured / 1e9:.3f} GB allocated, {peak.planned.most / 1e9:.3f} planned"
