"""Bytes that one rank of a layout holds, part by part, and at most at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.planning.timeline import Pass, most_held, passes
from model.activations import Kernels, RowSizes, decoder_layer_bytes, row_bytes
from model.config import ModelConfig
from model.memory import HeldBytes
from parallel.config import ParallelConfig

_INT64 = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class RankMemory:
    """Of one rank, in bytes."""

    weights: int
    optimizer: int
    """Masters and moments, the rank's share."""
    gradients: int
    """Of a whole step: `.grad` in fp32 runs, fp32 accumulators in bf16 ones."""
    rows: int
    """Pixels, tokens and positions of the step's microbatches, on the device before the pipeline starts."""
    activations: int
    """What waits for backward, of as many microbatches as are under way at most."""
    working: int
    """Beside that at a time: what one layer or the head computes with."""
    reduction: int
    """What the reduction of gradients takes in place of activations and working memory."""

    @property
    def most(self) -> int:
        """At most at a time."""
        steady = self.weights + self.optimizer + self.gradients + self.rows
        return steady + max(self.activations + self.working, self.reduction)


def rank_memory(
    model: ModelConfig,
    parallel: ParallelConfig,
    trainable: Sequence[str],
    held: HeldBytes,
    kernels: Kernels,
    rank: int,
    split: Sequence[int],
    rows: Sequence[RowSizes],
) -> RankMemory:
    """Of a rank of the pipeline in a step.

    Args:
        held: its weights, gradients and optimizer state (train/optimizer.py: state_bytes).
        rank: in the pipeline.
        split: language layers of each piece.
        rows: the replica's microbatches, in order.
    """
    stages, chunks = parallel.pipeline, parallel.chunks

    def left(step: Pass) -> int:
        piece = step.chunk * stages + rank
        return row_bytes(
            model,
            rows[step.microbatch],
            parallel,
            kernels,
            trainable,
            layers=split[piece],
            is_first=piece == 0,
            is_last=piece == stages * chunks - 1,
        )

    return RankMemory(
        weights=held.weights,
        optimizer=held.masters + held.moments,
        gradients=held.gradients + held.accumulators,
        rows=sum(_given_bytes(model, row, kernels, is_first=rank == 0) for row in rows),
        activations=most_held(passes(rank, stages, chunks, len(rows)), left),
        working=max(_working_bytes(model, parallel, kernels, trainable, row, rank == stages - 1) for row in rows),
        reduction=held.bucket,
    )


def _given_bytes(model: ModelConfig, row: RowSizes, kernels: Kernels, is_first: bool) -> int:
    """Tokens and three positions of each, targets, and on the first pipeline stage pixels."""
    numbers = (4 * row.tokens + 2 * row.targets) * _INT64
    pixels = row.patches * model.vision.patch_dim * kernels.bytes_each if model.vision and is_first else 0
    return numbers + pixels


def _working_bytes(
    model: ModelConfig,
    parallel: ParallelConfig,
    kernels: Kernels,
    trainable: Sequence[str],
    row: RowSizes,
    is_last: bool,
) -> int:
    """What backward of the head, or of one decoder layer, makes on its way: gradients of what it passes, one gradient of
    a weight, and under full recomputation all that the layer saves."""
    language, each = model.language, kernels.bytes_each
    learns = "language" in trainable
    ffn = language.ffn_size // parallel.tensor
    layer = row.tokens * (language.hidden_size + 4 * ffn) * each + (
        2 * ffn * language.hidden_size * each if learns else 0
    )
    if parallel.recompute.language == "full":
        kept = ParallelConfig(tensor=parallel.tensor, sequence_parallel=parallel.sequence_parallel)
        layer += decoder_layer_bytes(language, row, kept, kernels, learns)
    if not is_last:
        return layer
    vocabulary = -(-language.vocab_size // parallel.tensor)
    head = row.targets * vocabulary * each + (vocabulary * language.hidden_size * each if learns else 0)
    return max(layer, head)
