"""Sizes of a Qwen2-VL-style model. Field names follow the Hugging Face config where one exists."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """The vision tower: a bidirectional transformer over 2x14x14 patches with 2-D rotary positions."""

    depth: int
    """Blocks."""
    embed_dim: int
    """Width."""
    num_heads: int
    """Attention heads, of embed_dim / num_heads each."""
    mlp_ratio: int = 4
    """Width of the feed-forward part over `embed_dim`."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    temporal_patch_size: int = 2
    """Frames that a patch spans."""
    spatial_merge_size: int = 2
    """Patches along one side of the block that the merger makes one visual token of."""
    in_channels: int = 3
    """Colours."""
    layernorm_eps: float = 1e-6
    """Added to the variance in the tower's and the merger's norms."""

    def __post_init__(self) -> None:
        _check_positive(self, "model.vision")
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 4:
            raise ValueError(
                f"model.vision: embed_dim {self.embed_dim} over num_heads {self.num_heads} gives a head of "
                f"{self.embed_dim / self.num_heads:g}; 2-D rotary positions need a multiple of 4"
            )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def ffn_size(self) -> int:
        return self.embed_dim * self.mlp_ratio

    @property
    def patch_dim(self) -> int:
        """Length of one flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_dim(self) -> int:
        """Width of one merged block of patches, the merger's input."""
        return self.embed_dim * self.spatial_merge_size**2


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """The Qwen2 decoder."""

    hidden_size: int
    """Width."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads, each for num_heads / num_kv_heads query heads; the most that `parallel.tensor` can be."""
    ffn_size: int
    """Width of the feed-forward part (SwiGLU)."""
    vocab_size: int
    """Rows of the embedding; at least the tokenizer's."""
    mrope_section: tuple[int, int, int]
    """Rotary frequency pairs that follow the temporal, height and width position; they sum to head_dim / 2."""
    tie_embeddings: bool = False
    """The head is the embedding's matrix."""
    max_positions: int = 32768
    """Largest position that the model is made for, as published; a conversation beyond it is refused."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in the norms. Published checkpoints say 1e-6; transformers' default is 1e-5."""
    head_size: int | None = None
    """Of one head; None is hidden_size / num_heads."""

    def __post_init__(self) -> None:
        _check_positive(self, "model.language")
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.language: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.language: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if min(self.mrope_section) < 0 or sum(self.mrope_section) * 2 != self.head_dim:
            raise ValueError(
                f"model.language: mrope_section {list(self.mrope_section)} sums to {sum(self.mrope_section)}; "
                f"a head of {self.head_dim} needs {self.head_dim // 2}, in parts of 0 or more"
            )

    @property
    def head_dim(self) -> int:
        return self.head_size if self.head_size is not None else self.hidden_size // self.num_heads

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one key and value head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A whole model. Without `vision` it is the language model alone, which is how the quickstart grows its own."""

    name: str
    """What the model is called on the terminal and in reports."""
    language: LanguageConfig
    vision: VisionConfig | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts a training stage can train or freeze."""
        return ("vision", "merger", "language") if self.vision else ("language",)


def _check_positive(record: Any, group: str) -> None:
    """Every number of `record`, before any division by it."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    wrong = [f"{name}={value:g}" for name, value in values.items() if type(value) in (int, float) and not value > 0]
    if wrong:
        raise ValueError(f"{group}: {', '.join(wrong)} must be more than 0")
