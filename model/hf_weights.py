"""Weights to and from Hugging Face safetensors, as pure maps between names and shapes.

A canonical tensor (model/canonical.py) is made of one or more pieces of Hugging Face tensors, and every Hugging Face
tensor is a concatenation of rows of pieces of one canonical tensor:

    canonical (heads, 3, d, E)   <- rows of attn.qkv (3 heads d, E), read as (3, heads, d, E)
    canonical (groups, q+2, d, H) <- q_proj (groups q d, H), k_proj (groups d, H), v_proj (groups d, H)
    canonical (2, F, H)          <- gate_proj (F, H), up_proj (F, H)
    canonical (E, 1176)          <- patch_embed.proj (E, 3, 2, 14, 14)

so that one table serves both ways, and a rank can read the rows it needs and no others.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import LanguageConfig, ModelConfig, VisionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Entries [start, stop) of dim `dim` of a canonical tensor, and the Hugging Face rows that hold them.

    The rows [first_row, first_row + rows) of the Hugging Face tensor, flattened, are the piece, flattened.
    """

    hf_name: str
    hf_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dim: int = 0
    start: int = 0
    first_row: int = 0
    rows: int
    frames: int = 1
    """Over how many frames the stored rows of a 2-D patch convolution are spread, in equal parts (model/clip.py)."""

    def rows_to_entries(self, rows: Tensor) -> Tensor:
        """Stored rows as entries of the piece's first dim; memory is shared where nothing is spread."""
        entries = len(rows) * self.shape[0] // self.rows
        if self.frames > 1:
            spread = rows.unsqueeze(2) / self.frames
            rows = spread.expand(-1, -1, self.frames, *spread.shape[3:])
        return rows.reshape(entries, *self.shape[1:])


def _whole(hf_name: str, hf_shape: tuple[int, ...], shape: tuple[int, ...] | None = None) -> tuple[Piece, ...]:
    return (Piece(hf_name=hf_name, hf_shape=hf_shape, shape=shape or hf_shape, rows=hf_shape[0]),)


def _vision_pieces(vision: VisionConfig, hidden_size: int) -> dict[str, tuple[Piece, ...]]:
    width, ffn, merged = vision.embed_dim, vision.ffn_size, vision.merged_dim
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    pieces = {
        "vision.patch_embed.weight": _whole(
            "visual.patch_embed.proj.weight", (width, *patch), (width, vision.patch_dim)
        ),
        "merger.norm.weight": _whole("visual.merger.ln_q.weight", (width,)),
        "merger.norm.bias": _whole("visual.merger.ln_q.bias", (width,)),
        "merger.fc1.weight": _whole("visual.merger.mlp.0.weight", (merged, merged)),
        "merger.fc1.bias": _whole("visual.merger.mlp.0.bias", (merged,)),
        "merger.fc2.weight": _whole("visual.merger.mlp.2.weight", (hidden_size, merged)),
        "merger.fc2.bias": _whole("visual.merger.mlp.2.bias", (hidden_size,)),
    }
    heads = (vision.num_heads, 1, vision.head_dim)
    for layer in range(vision.depth):
        ours, theirs = f"vision.blocks.layers.{layer}", f"visual.blocks.{layer}"
        for norm, name in (("input_layernorm", "norm1"), ("pre_mlp_layernorm", "norm2")):
            for kind in ("weight", "bias"):
                pieces[f"{ours}.{norm}.{kind}"] = _whole(f"{theirs}.{name}.{kind}", (width,))
        for kind, tail in (("weight", (width,)), ("bias", ())):
            pieces[f"{ours}.self_attention.linear_qkv.{kind}"] = tuple(
                Piece(
                    hf_name=f"{theirs}.attn.qkv.{kind}",
                    hf_shape=(3 * width, *tail),
                    shape=(*heads, *tail),
                    dim=1,
                    start=part,
                    first_row=part * width,
                    rows=width,
                )
                for part in range(3)
            )
        for name, theirs_name, rows, columns in (
            ("self_attention.linear_proj", "attn.proj", width, width),
            ("mlp.linear_fc1", "mlp.fc1", ffn, width),
            ("mlp.linear_fc2", "mlp.fc2", width, ffn),
        ):
            pieces[f"{ours}.{name}.weight"] = _whole(f"{theirs}.{theirs_name}.weight", (rows, columns))
            pieces[f"{ours}.{name}.bias"] = _whole(f"{theirs}.{theirs_name}.bias", (rows,))
    return pieces


def _language_pieces(language: LanguageConfig) -> dict[str, tuple[Piece, ...]]:
    hidden, ffn, head = language.hidden_size, language.ffn_size, language.head_dim
    groups, queries = language.num_kv_heads, language.heads_per_group
    vocabulary = (language.vocab_size, hidden)
    pieces = {
        "language.embedding.word_embeddings.weight": _whole("model.embed_tokens.weight", vocabulary),
        "language.decoder.final_layernorm.weight": _whole("model.norm.weight", (hidden,)),
    }
    if not language.tie_embeddings:
        pieces["language.output_layer.weight"] = _whole("lm_head.weight", vocabulary)
    for layer in range(language.num_layers):
        ours, theirs = f"language.decoder.layers.{layer}", f"model.layers.{layer}"
        pieces[f"{ours}.input_layernorm.weight"] = _whole(f"{theirs}.input_layernorm.weight", (hidden,))
        pieces[f"{ours}.pre_mlp_layernorm.weight"] = _whole(f"{theirs}.post_attention_layernorm.weight", (hidden,))
        for kind, tail in (("weight", (hidden,)), ("bias", ())):
            pieces[f"{ours}.self_attention.linear_qkv.{kind}"] = tuple(
                Piece(
                    hf_name=f"{theirs}.self_attn.{name}_proj.{kind}",
                    hf_shape=(groups * count * head, *tail),
                    shape=(groups, count, head, *tail),
                    dim=1,
                    start=start,
                    rows=groups * count * head,
                )
                for name, start, count in (("q", 0, queries), ("k", queries, 1), ("v", queries + 1, 1))
            )
        pieces[f"{ours}.self_attention.linear_proj.weight"] = _whole(
            f"{theirs}.self_attn.o_proj.weight", (hidden, language.num_heads * head)
        )
        pieces[f"{ours}.mlp.linear_fc1.weight"] = tuple(
            Piece(
                hf_name=f"{theirs}.mlp.{name}_proj.weight",
                hf_shape=(ffn, hidden),
                shape=(1, ffn, hidden),
                start=part,
                rows=ffn,
            )
            for part, name in enumerate(("gate", "up"))
        )
        pieces[f"{ours}.mlp.linear_fc2.weight"] = _whole(f"{theirs}.mlp.down_proj.weight", (hidden, ffn))
    return pieces


def hf_pieces(config: ModelConfig) -> dict[str, tuple[Piece, ...]]:
    """Canonical name -> the pieces that make it, with Hugging Face names in the published flat form."""
    pieces = _vision_pieces(config.vision, config.language.hidden_size) if config.vision else {}
    return pieces | _language_pieces(config.language)


def canonical_shape(pieces: tuple[Piece, ...]) -> tuple[int, ...]:
    """Shape of the whole canonical tensor that `pieces` make."""
    shape = list(pieces[0].shape)
    shape[pieces[0].dim] = sum(piece.shape[piece.dim] for piece in pieces)
    return tuple(shape)


def common_dtype(config: ModelConfig, dtype_of: Callable[[str], torch.dtype]) -> torch.dtype:
    """The dtype that most of a model's weights have, by canonical name: what transformers is told to load all in."""
    weights: Counter[torch.dtype] = Counter()
    for name, pieces in hf_pieces(config).items():
        weights[dtype_of(name)] += math.prod(canonical_shape(pieces))
    return weights.most_common(1)[0][0]


def to_hf(pieces: tuple[Piece, ...], tensor: Tensor) -> dict[str, Tensor]:
    """The Hugging Face tensors that one whole canonical tensor becomes: contiguous, no two in one memory.

    A tensor of one piece shares its memory with `tensor`: the largest is the vocabulary, and copying it would cost it
    twice.
    """
    if len(pieces) == 1:
        return {pieces[0].hf_name: tensor.reshape(pieces[0].hf_shape).contiguous()}
    rows: dict[str, list[Tensor]] = {}
    for piece in pieces:
        part = tensor.narrow(piece.dim, piece.start, piece.shape[piece.dim])
        rows.setdefault(piece.hf_name, []).append(part.reshape(piece.rows, *piece.hf_shape[1:]))
    return {name: torch.cat(parts).contiguous() for name, parts in rows.items()}


def from_hf(pieces: tuple[Piece, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    """One whole canonical tensor out of whole Hugging Face tensors (published names)."""
    parts = [tensors[piece.hf_name].narrow(0, piece.first_row, piece.rows).reshape(piece.shape) for piece in pieces]
    return torch.cat(parts, dim=pieces[0].dim)


def published_name(name: str) -> str:
    """The published flat name of a tensor named by either generation of transformers."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


def in_memory_name(name: str) -> str:
    """What transformers 5 calls a published tensor of Qwen2-VL in the model's state_dict."""
    if name.startswith("visual."):
        return "model." + name
    return "model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name
