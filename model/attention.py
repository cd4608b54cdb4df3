"""Attention over packed rows: tokens attend only within their own segment.

Shapes: T tokens of a row, N heads on this rank, K key/value heads on this rank, D head size.
"""

import copy
import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from model.rotary import Turn

# torch 2.12 takes grouped key/value heads as they are; 2.11 wants them repeated.
_FUSED_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass
class Segments(PackedSeqParams):
    """Segment lengths of a packed row. A segment is a sample for the language model, a frame for the vision tower."""

    lengths: tuple[int, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    turn: Turn | None = None
    """Rotary positions of the row's places, which depend on the tower."""

    def __post_init__(self) -> None:
        self.qkv_format = "packed"
        self.max_length = max(self.lengths, default=0)
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        self.starts = starts
        self._boundaries: Tensor | None = None
        self._batches: tuple[list[tuple[int, int]], Tensor | None, Tensor | None] | None = None

    def turned(self, turn: Turn) -> "Segments":
        """The same segments with rotary positions."""
        with_turn = copy.copy(self)
        with_turn.turn = turn
        return with_turn

    @property
    def boundaries(self) -> Tensor:
        """Cumulative lengths, int32 (segments + 1,), on the device; made once, used by every layer."""
        if self._boundaries is None:
            self._boundaries = torch.tensor(self.starts, dtype=torch.int32).to(self.device, non_blocking=True)
        return self._boundaries

    @property
    def batches(self) -> tuple[list[tuple[int, int]], Tensor | None, Tensor | None]:
        """Segments grouped by length, as (count, length) pairs, with the gather order and its inverse.

        The orders are None when the row already lies grouped.
        """
        if self._batches is None:
            by_length: dict[int, list[int]] = {}
            for start, length in zip(self.starts, self.lengths, strict=False):
                by_length.setdefault(length, []).append(start)
            pairs = [(len(starts), length) for length, starts in by_length.items()]
            order = torch.cat(
                [
                    (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()
                    for length, starts in by_length.items()
                ]
            )
            identity = torch.arange(len(order))
            if torch.equal(order, identity):
                self._batches = (pairs, None, None)
            else:
                inverse = torch.empty_like(order)
                inverse[order] = identity
                self._batches = (pairs, order.to(self.device), inverse.to(self.device))
        return self._batches


class PackedAttention(torch.nn.Module):
    """Drop-in `core_attention` of a megatron-core layer. Causal or bidirectional, with grouped key/value heads."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.fused = fused  # where there is such a kernel: parallel.kernels.fused_attention
        self.causal = attn_mask_type == AttnMaskType.causal
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Segments | None = None,
    ) -> Tensor:
        """query (T, 1, N, D), key and value (T, 1, K, D) -> (T, 1, N * D)."""
        assert packed_seq_params is not None and attention_bias is None
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        if (turn := packed_seq_params.turn) is not None:
            query, key = turn(query), turn(key)
        if self.fused and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
            mixed = self._fused(query, key, value, packed_seq_params)
        else:
            mixed = self._by_length(query, key, value, packed_seq_params)
        return mixed.reshape(mixed.shape[0], 1, -1)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        grouping: dict[str, Any] = {}
        if query.shape[1] != key.shape[1]:
            if _FUSED_TAKES_GROUPS:
                grouping = {"enable_gqa": True}
            else:
                repeats = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        return varlen_attn(  # type: ignore[return-value]  # a pair only when asked for log-sum-exps
            query,
            key,
            value,
            segments.boundaries,
            segments.boundaries,
            segments.max_length,
            segments.max_length,
            scale=self.scale,
            window_size=(-1, 0) if self.causal else (-1, -1),
            **grouping,
        )

    def _by_length(self, query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
        """One dense attention for all segments of a length: no padding, and few kernels where lengths repeat."""
        pairs, order, inverse = segments.batches
        if order is not None:
            query, key, value = query[order], key[order], value[order]
        sizes = [count * length for count, length in pairs]
        mixed = []
        grouped_heads = query.shape[1] != key.shape[1]
        for pair, *parts in zip(pairs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
            q, k, v = (part.unflatten(0, pair).transpose(1, 2) for part in parts)
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, scale=self.scale, enable_gqa=grouped_heads
            )
            mixed.append(out.transpose(1, 2).flatten(0, 1))
        joined = torch.cat(mixed) if len(mixed) > 1 else mixed[0]
        return joined if inverse is None else joined[inverse]
