"""A tiny Qwen2-VL with uneven everything, and folders of it."""

from pathlib import Path

import torch
from torch import Tensor

from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_weights import canonical_shape, hf_pieces
from model.hf_write import write_hf

VISION = VisionConfig(depth=2, embed_dim=32, num_heads=4)
LANGUAGE = LanguageConfig(
    hidden_size=48,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    ffn_size=56,
    vocab_size=40,
    mrope_section=(2, 1, 1),
    rope_theta=50_000.0,
    max_positions=512,
)
TINY = ModelConfig(name="tiny", vision=VISION, language=LANGUAGE)


def tied(config: ModelConfig) -> ModelConfig:
    fields = {name: getattr(config.language, name) for name in LanguageConfig.__dataclass_fields__}
    return ModelConfig(
        name=config.name, vision=config.vision, language=LanguageConfig(**(fields | {"tie_embeddings": True}))
    )


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(canonical_shape(pieces), generator=generator) for name, pieces in hf_pieces(config).items()
    }


def export(folder: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Path, **options: object) -> Path:
    arguments = {"dtype": torch.float32, "min_pixels": 3136, "max_pixels": 50176} | options
    return write_hf(folder, config, weights.__getitem__, tokenizer, **arguments)  # type: ignore[arg-type]
