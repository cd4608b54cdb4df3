"""Bytes that one rank of a layout holds, part by part, and at most at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.planning.piece import Piece
from launch.planning.timeline import Pass, most_held, passes
from model.activations import INT64, RowSizes
from model.memory import HeldBytes


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
    """What one microbatch leaves for backward, the largest."""
    in_flight: int
    """The same of the others that 1F1B has under way with it."""
    working: int
    """Beside these at the worst moment: what one layer, the head or the tower computes with, and messages of the
    pipeline that wait to be sent or used."""
    buffers: int
    """What the reduction of gradients takes in place of activations and working memory."""

    @property
    def most(self) -> int:
        """At most at a time."""
        steady = self.weights + self.optimizer + self.gradients + self.rows
        return steady + max(self.activations + self.in_flight + self.working, self.buffers)


def rank_memory(pieces: Sequence[Piece], held: HeldBytes, rank: int, rows: Sequence[RowSizes]) -> RankMemory:
    """Of a rank of the pipeline in a step.

    Args:
        pieces: all of the pipeline's.
        held: the rank's weights, gradients and optimizer state (train/optimizer.py: state_bytes).
        rank: in the pipeline.
        rows: the replica's microbatches, in order.
    """
    stages = pieces[0].parallel.pipeline
    mine = pieces[rank::stages]
    order = passes(rank, stages, len(mine), len(rows))
    kinds = {(chunk, row): piece.saved(row) for chunk, piece in enumerate(mine) for row in set(rows)}
    besides = {
        (chunk, row, backward): piece.beside(row, backward)
        for chunk, piece in enumerate(mine)
        for row in set(rows)
        for backward in (False, True)
    }

    def left(step: Pass) -> int:
        return kinds[step.chunk, rows[step.microbatch]]

    messages = _messages(order, [pieces[rank].message_bytes(row) for row in rows], rank > 0, rank < stages - 1)

    def beside(step: Pass) -> int:
        return besides[step.chunk, rows[step.microbatch], step.backward] + messages[step]

    waiting, one = most_held(order, left), max(kinds.values())
    return RankMemory(
        weights=held.weights,
        optimizer=held.masters + held.moments,
        gradients=held.gradients + held.accumulators,
        rows=sum(_given_bytes(pieces[rank], row) for row in rows),
        activations=one,
        in_flight=waiting - one,
        working=most_held(order, left, beside) - waiting,
        buffers=held.bucket,
    )


def _messages(order: Sequence[Pass], sizes: Sequence[float], has_before: bool, has_after: bool) -> dict[Pass, int]:
    """Bytes of hidden states and gradients that are there in each pass beside its own.

    megatron-core's loop keeps what the last backward pass had until the next: its input and that one's gradient, and
    the gradient that it was given. A backward pass has been given one, and the gradient sent before is still there.
    """
    found, last = {}, 0.0
    for step in order:
        if step.backward:
            found[step] = int(has_before * last + has_after * sizes[step.microbatch])
            last = sizes[step.microbatch]
        else:
            found[step] = int((2 * has_before + has_after) * last)
    return found


def _given_bytes(piece: Piece, row: RowSizes) -> int:
    """Tokens and three positions of each, targets and their places, and on the first pipeline stage pixels."""
    numbers = (4 * row.tokens + 2 * row.targets) * INT64
    vision = piece.model.vision
    pixels = row.patches * vision.patch_dim * piece.kernels.bytes_each if vision and piece.is_first else 0
    return numbers + pixels
