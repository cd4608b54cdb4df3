"""Norms of gradients that lie in shares on many ranks: what a rank adds to those of the whole model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one rank has of a reduced gradient."""

    part: str
    gradient: Tensor
    counts: bool
    """Whether it is this rank that counts it, of all ranks that hold the same."""


def squared_norms(pieces: Sequence[Piece], parts: Sequence[str]) -> list[float]:
    """The squared norm of all `pieces` together, then that of each part by those that count.

    Not finite where a gradient is not. It looks at the device once: the norms of all pieces come back together, and
    what is summed up of them is summed on the host, in fp64.
    """
    if not pieces:
        return [0.0] * (1 + len(parts))
    norms = torch.stack([torch.linalg.vector_norm(piece.gradient, dtype=torch.float32) for piece in pieces])
    squares = [norm * norm for norm in norms.tolist()]
    counted = dict.fromkeys(parts, 0.0)
    for piece, square in zip(pieces, squares, strict=True):
        counted[piece.part] += square if piece.counts else 0.0
    return [sum(squares), *counted.values()]
