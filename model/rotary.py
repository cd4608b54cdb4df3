"""Rotary positions: angles of every place of a row, once for all layers, and the turn that attention gives by them.

megatron-core would take cosines and sines anew in every layer and copy queries and keys once more each.
Shapes: T places of a row, N heads on this rank, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Turn:
    """Cosines and sines of every place, (T, 1, D / 2)."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def by(cls, angles: Tensor, dtype: torch.dtype) -> "Turn":
        """angles float32 (T, D / 2); `dtype` is that of the queries."""
        return cls(angles.cos().to(dtype).unsqueeze(1), angles.sin().to(dtype).unsqueeze(1))

    def __call__(self, heads: Tensor) -> Tensor:
        """(T, N, D) -> (T, N, D). The numbers of a pair lie half a head apart, as in transformers' `rotate_half`."""
        first, second = heads.chunk(2, dim=-1)
        return torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)


def mrope_angles(positions: Tensor, theta: float, section: Sequence[int]) -> Tensor:
    """Angles of M-RoPE, float32 (T, D / 2): so many pairs as `section` says follow time, height and width.

    Source: arXiv 2409.12191 section 2.1; transformers `apply_multimodal_rotary_pos_emb`.

    Args:
        positions: int64 (3, 1, T), by time, height and width.
        theta: the rotary base.
    """
    pairs = sum(section)
    inverse_frequency = 1.0 / theta ** (torch.arange(pairs, dtype=torch.float32, device=positions.device) / pairs)
    placed = [axis.expand(size, -1) for axis, size in zip(positions[:, 0].float(), section, strict=True)]
    return torch.cat(placed).t() * inverse_frequency
