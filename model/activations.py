"""Bytes that forward leaves for backward, from sizes alone: what autograd saves of one row, storage by storage, beside
weights and the row itself.

Read off a forward pass with `torch.autograd.graph.saved_tensors_hooks` (tests/model/test_activations.py does so again),
megatron-core 0.16.1 and torch 2.11 to 2.13. In elements for each token of a decoder layer, on one of t tensor ranks:

    norm (two)        H            its input; composed of single operations two fp32 copies instead: `Kernels.composed`
    qkv               H            input of the matrix; nothing where it is frozen, and so below
    attention         N + 2K       queries, keys, values as they come, of which values are a view
                      N + K        queries and keys once turned
                      N (+ N)      what comes out, and once more where segments of several lengths are put together
    fc1               H
    activation        2F + F + F   gate and up together, the activated gate, up once more (`glu_linear_offset`)
    fc2               F

H is the width, N, K and F are widths of all query heads, all key heads, and the feed-forward part, divided by t. Under
sequence parallelism H is, too. Selective recomputation keeps what comes of the matrix alone, full one H a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.flops import Work, row_work
from parallel.config import ParallelConfig, Recompute

FP32, INT64 = 4, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """What of the kernels decides what is saved."""

    bytes_each: int
    """Of an element of the model's dtype."""
    on_gpu: bool
    fused_norms: bool = True
    fused_attention: bool = True
    overlap: bool = True

    @property
    def composed(self) -> bool:
        """Whether RMSNorm is made of single operations, in fp32: as `kernels.fused_norms=false` has it, and torch's own
        on CPU. Then the input in fp32 is saved, and for the weight's gradient the scaled input as well."""
        return not (self.on_gpu and self.fused_norms)

    @property
    def one_attention(self) -> bool:
        """Whether one kernel takes all segments of a row, so that nothing is put together."""
        return self.on_gpu and self.fused_attention and self.bytes_each == 2


def kernels_of(parallel: ParallelConfig, precision: str, on_gpu: bool) -> Kernels:
    """Those of a run."""
    return Kernels(
        bytes_each=2 if precision == "bf16" else 4,
        on_gpu=on_gpu,
        fused_norms=parallel.kernels.fused_norms,
        fused_attention=parallel.kernels.fused_attention,
        overlap=parallel.kernels.overlap_tensor,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSizes:
    """A packed row, as its lengths say."""

    segments: tuple[int, ...]
    """Tokens of each sample."""
    frames: tuple[int, ...]
    """Patches of each frame."""
    targets: int
    """Places that get logits."""

    @property
    def tokens(self) -> int:
        return sum(self.segments)

    @property
    def patches(self) -> int:
        return sum(self.frames)

    @property
    def work(self) -> Work:
        """What it takes to compute."""
        return row_work(self.segments, [(1, 1, patches) for patches in self.frames], self.targets)


def tower_bytes(config: VisionConfig, row: RowSizes, parallel: ParallelConfig, kernels: Kernels) -> int:
    """Of a trained vision tower; a frozen one leaves nothing."""
    each, patches = kernels.bytes_each, row.patches
    outer = config.embed_dim // (parallel.tensor if parallel.sequence_parallel else 1)
    inner, ffn = config.embed_dim // parallel.tensor, config.ffn_size // parallel.tensor
    heads = config.num_heads // parallel.tensor
    recompute = parallel.recompute.vision
    turn = 0 if recompute != "none" else config.head_dim * each  # cosines and sines, shared by all layers
    if recompute == "full":
        layer = outer * each
    else:
        statistics = 2 * (FP32 if kernels.on_gpu else each)
        layer = 2 * (outer * each + statistics)  # norms
        layer += 2 * _gathered(config.embed_dim, parallel, kernels) * each + 3 * ffn * each  # quick_gelu saves two
        attention = _attention_bytes(inner, inner, heads, False, row.frames, recompute, True, kernels)
        layer += attention
    scattered = (config.embed_dim - outer) * each  # the first layer's input is a view of all ranks'
    return patches * (config.depth * layer + turn + scattered)


def merger_bytes(config: VisionConfig, hidden_size: int, row: RowSizes, kernels: Kernels) -> int:
    """Of a trained merger: input and statistics of its norm, inputs of both matrices, and of the activation between;
    what comes out, which is put among the tokens."""
    each, merged = kernels.bytes_each, row.patches // config.spatial_merge_size**2
    statistics = 2 * (FP32 if kernels.on_gpu else each)
    norm = row.patches * (config.embed_dim * each + statistics)
    return norm + merged * (3 * config.merged_dim + hidden_size) * each


def decoder_layer_bytes(
    config: LanguageConfig, row: RowSizes, parallel: ParallelConfig, kernels: Kernels, learns: bool
) -> int:
    """Of one layer, trained or passed through."""
    each, tensor = kernels.bytes_each, parallel.tensor
    outer = config.hidden_size // (tensor if parallel.sequence_parallel else 1)
    recompute = parallel.recompute.language
    if recompute == "full":
        return row.tokens * outer * each
    queries = config.num_heads * config.head_dim // tensor
    keys = config.num_kv_heads * config.head_dim // tensor
    ffn = config.ffn_size // tensor
    taken = 2 * _gathered(config.hidden_size, parallel, kernels) + ffn if learns else 0  # inputs of qkv, fc1 and fc2
    layer = 2 * rms_norm_bytes(outer, kernels, learns) + (taken + 4 * ffn) * each
    grouped = config.heads_per_group > 1 and config.num_kv_heads > tensor
    heads = config.num_heads // tensor
    layer += _attention_bytes(queries, keys, heads, grouped, row.segments, recompute, learns, kernels)
    return row.tokens * layer


def rms_norm_bytes(width: int, kernels: Kernels, learns: bool) -> int:
    """For each token."""
    if kernels.composed:
        return (width * (2 if learns else 1) + 1) * FP32
    return width * kernels.bytes_each + FP32


def head_bytes(config: LanguageConfig, row: RowSizes, parallel: ParallelConfig, kernels: Kernels, learns: bool) -> int:
    """Of the last norm, the head and the loss: probabilities in fp32 are most of it."""
    outer = config.hidden_size // (parallel.tensor if parallel.sequence_parallel else 1)
    vocabulary = -(-config.vocab_size // parallel.tensor)
    target = vocabulary * FP32 + 1 + INT64 + (config.hidden_size * kernels.bytes_each if learns else 0)
    return row.tokens * rms_norm_bytes(outer, kernels, learns) + row.targets * target


def row_bytes(
    model: ModelConfig,
    row: RowSizes,
    parallel: ParallelConfig,
    kernels: Kernels,
    trainable: Sequence[str],
    *,
    layers: int,
    is_first: bool,
    is_last: bool,
) -> int:
    """Of one row on one pipeline stage with `layers` decoder layers.

    Rows through which no gradient goes (the decoder is frozen, and there is no picture) leave nothing where they come
    in. What a later pipeline stage is sent wants a gradient in any case (megatron-core, `p2p_communication.py`).
    """
    learns = "language" in trainable
    total = 0
    visual = row.patches > 0 and model.vision is not None
    if visual and is_first:
        assert model.vision is not None
        if "vision" in trainable:
            total += tower_bytes(model.vision, row, parallel, kernels)
        if "merger" in trainable:
            total += merger_bytes(model.vision, model.language.hidden_size, row, kernels)
    if is_first and not learns and not (visual and {"vision", "merger"} & set(trainable)):
        return total
    total += layers * decoder_layer_bytes(model.language, row, parallel, kernels, learns)
    if parallel.recompute.language == "none":
        total += row.tokens * model.language.head_dim * kernels.bytes_each  # cosines and sines
    if is_first and parallel.tensor > 1 and learns:
        total += row.tokens * (INT64 + 1)  # which tokens are another rank's
    if is_first and parallel.sequence_parallel and (parallel.recompute.language == "full" or not kernels.composed):
        width = model.language.hidden_size  # the first layer's input is a view of all ranks'
        total += row.tokens * (width - width // parallel.tensor) * kernels.bytes_each
    if is_last:
        total += head_bytes(model.language, row, parallel, kernels, learns)
    return total


def _attention_bytes(
    queries: int,
    keys: int,
    heads: int,
    grouped: bool,
    segments: Sequence[int],
    recompute: Recompute,
    learns: bool,
    kernels: Kernels,
) -> int:
    """For each token or patch, without what comes before its matrix. `grouped`: queries of several groups."""
    each = kernels.bytes_each
    mixed = queries + 2 * keys
    if recompute == "selective":  # its inputs are kept; queries of several groups are a copy, else a view
        return (mixed + (queries if grouped else 0) + (queries if learns else 0)) * each
    lengths = list(dict.fromkeys(segments))
    if kernels.one_attention:
        return (mixed + queries + keys + queries) * each + heads * FP32
    in_order = sorted(segments, key=lengths.index) == list(segments)
    values = mixed if in_order else keys  # put in order values are a copy, and what they were a view of goes
    joined = queries if learns and (len(lengths) > 1 or not in_order) else 0
    return (values + queries + keys + queries + joined) * each + heads * FP32


def _gathered(width: int, parallel: ParallelConfig, kernels: Kernels) -> int:
    """Elements that a column-parallel matrix keeps of an input: under sequence parallelism the own part, which backward
    gathers again, unless messages are not overlapped."""
    return width // parallel.tensor if parallel.sequence_parallel and kernels.overlap else width
