"""Floating-point operations of a training step: multiply and add counted as two, matrices and attention only.

What a frozen part does not compute is not counted: its weight gradients, and for a vision tower whose inputs are pixels
the whole backward pass. Recomputation is counted only where a function is told of it: model FLOPs, and with them MFU,
leave it out; what keeps a pipeline stage busy has it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from model.config import LanguageConfig, ModelConfig, VisionConfig
from parallel.config import Recompute, RecomputeConfig

NOTHING_AGAIN = RecomputeConfig(vision="none", language="none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a step processes, as sums over all its rows."""

    tokens: int = 0
    patches: int = 0
    token_pairs: int = 0
    """Sum over samples of length squared; causal attention computes half."""
    patch_pairs: int = 0
    """Sum over frames of patches squared."""
    blind_tokens: int = 0
    """Of `tokens`, those in rows without a picture: no gradient goes through them to what lies below the decoder."""
    blind_pairs: int = 0
    """Of `token_pairs`, likewise."""
    targets: int = 0
    """Supervised tokens: places that get logits."""
    blind_targets: int = 0
    """Of `targets`, likewise."""

    def __add__(self, other: "Work") -> "Work":
        return Work(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


def row_work(segments: Sequence[int], grids: Sequence[tuple[int, int, int]], targets: int) -> Work:
    """Of one row: lengths of its samples, (time, rows, columns) in patches of its pictures and clips, and how many of
    its tokens are supervised."""
    tokens, pairs = sum(segments), sum(length**2 for length in segments)
    return Work(
        tokens=tokens,
        patches=sum(time * height * width for time, height, width in grids),
        token_pairs=pairs,
        patch_pairs=sum(time * (height * width) ** 2 for time, height, width in grids),
        blind_tokens=0 if grids else tokens,
        blind_pairs=0 if grids else pairs,
        targets=targets,
        blind_targets=0 if grids else targets,
    )


def decoder_flops(config: LanguageConfig, tokens: int, token_pairs: int) -> tuple[int, int]:
    """Forward FLOPs of all decoder layers, without the head: (matrices, attention)."""
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    matrices = config.hidden_size * heads + config.num_heads * config.head_dim * config.hidden_size
    matrices += 3 * config.hidden_size * config.ffn_size
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * token_pairs // 2
    return 2 * tokens * config.num_layers * matrices, attention


def head_flops(config: LanguageConfig, targets: int) -> int:
    """Forward FLOPs of the matrix that gives logits."""
    return 2 * targets * config.hidden_size * config.vocab_size


def vision_flops(config: VisionConfig, patches: int, patch_pairs: int) -> tuple[int, int, int]:
    """Forward FLOPs of the vision tower: (patch embedding, matrices of the blocks, their attention)."""
    layer = 4 * config.embed_dim**2 + 2 * config.embed_dim * config.ffn_size
    attention = 4 * config.depth * config.embed_dim * patch_pairs
    return 2 * patches * config.patch_dim * config.embed_dim, 2 * patches * config.depth * layer, attention


def merger_flops(config: VisionConfig, hidden_size: int, patches: int) -> int:
    """Forward FLOPs of the merger."""
    visual_tokens = patches // config.spatial_merge_size**2
    return 2 * visual_tokens * config.merged_dim * (config.merged_dim + hidden_size)


def step_flops(
    config: ModelConfig, trainable: tuple[str, ...], work: Work, recompute: RecomputeConfig = NOTHING_AGAIN
) -> int:
    """FLOPs of forward and backward with the given parts trained; equal to what torch counts, the causal half apart."""
    return sum(part_flops(config, trainable, work, recompute).values())


def part_flops(
    config: ModelConfig, trainable: tuple[str, ...], work: Work, recompute: RecomputeConfig = NOTHING_AGAIN
) -> dict[str, int]:
    """The same, part by part: vision, merger, layers (of the decoder) and head.

    A trained matrix costs three forward passes (input and weight gradients), the patch embedding two, because nobody
    wants the gradient of pixels. A frozen matrix above something trained costs two, and one in front of it one.
    Attention has no weights: where it is passed backward both its factors get gradients, which makes three. What is
    computed again in backward costs one more, where there is a backward pass.
    """
    vision_learns, merger_learns = "vision" in trainable, "merger" in trainable
    below, language_learns = vision_learns or merger_learns, "language" in trainable
    parts = {"layers": 0, "head": 0}
    again = _passes_again(recompute.language)
    seen = work.tokens - work.blind_tokens, work.token_pairs - work.blind_pairs, work.targets - work.blind_targets
    blind = work.blind_tokens, work.blind_pairs, work.blind_targets
    for (tokens, pairs, targets), passed in ((seen, below), (blind, False)):
        passes = 3 if language_learns else 2 if passed else 1
        matrices, attention = decoder_flops(config.language, tokens, pairs)
        if passes == 1:
            parts["layers"] += matrices + attention
        else:
            parts["layers"] += matrices * (passes + again[0]) + attention * (3 + again[1])
        parts["head"] += head_flops(config.language, targets) * passes
    if config.vision is not None:
        embedding, matrices, attention = vision_flops(config.vision, work.patches, work.patch_pairs)
        if vision_learns:
            again = _passes_again(recompute.vision)
            parts["vision"] = 2 * embedding + matrices * (3 + again[0]) + attention * (3 + again[1])
        else:
            parts["vision"] = embedding + matrices + attention
        # The merger's norm stands before its matrices, so their inputs want gradients above a frozen tower too.
        merger = merger_flops(config.vision, config.language.hidden_size, work.patches)
        parts["merger"] = merger * (3 if merger_learns else 2 if vision_learns else 1)
    return parts


def _passes_again(recompute: Recompute) -> tuple[int, int]:
    """Forward passes that backward repeats of a layer's (matrices, attention)."""
    return int(recompute == "full"), int(recompute != "none")
