"""The Qwen2-VL vision tower and the merger that turns its patches into visual tokens.

Shapes: P patches of a row in 2x2 merge-block order, E vision width, V = P / 4 visual tokens, H language width.
Source: arXiv 2409.12191 section 2.1; transformers `models/qwen2_vl/modeling_qwen2_vl.py`.
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, scatter_to_sequence_parallel_region
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from model.attention import Segments
from model.config import VisionConfig
from model.layers import (
    ComposedLayerNorm,
    LayerNorm,
    PlainLayerNorm,
    layer_spec,
    quick_gelu,
    settle_overlap,
    shared_settings,
)
from model.rotary import Turn
from parallel.config import ParallelConfig
from parallel.groups import Groups

Grid = tuple[int, int, int]
"""(time steps, rows, columns) of one picture or clip, in patches."""


class VisionTower(torch.nn.Module):
    """Patches of any number of pictures and clips in, hidden states out; attention stays within a frame."""

    def __init__(self, config: VisionConfig, parallel: ParallelConfig, groups: Groups, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.groups = groups
        self.sequence_parallel = parallel.sequence_parallel
        # A Linear on flattened patches is the Conv3d of the paper with stride = kernel, faster and deterministic.
        self.patch_embed = torch.nn.Linear(
            config.patch_dim, config.embed_dim, bias=False, dtype=dtype, device=groups.device
        )
        block_config = TransformerConfig(
            num_layers=config.depth,
            hidden_size=config.embed_dim,
            num_attention_heads=config.num_heads,
            kv_channels=config.head_dim,
            ffn_hidden_size=config.ffn_size,
            activation_func=quick_gelu,
            normalization="LayerNorm",
            layernorm_epsilon=config.layernorm_eps,
            **shared_settings(parallel, parallel.recompute.vision, dtype, groups.device),
        )
        norm = LayerNorm if parallel.kernels.fused_norms else PlainLayerNorm
        spec = layer_spec(norm, causal=False, kernels=parallel.kernels)
        self.blocks = TransformerBlock(
            block_config,
            TransformerBlockSubmodules(layer_specs=[spec] * config.depth),
            post_layer_norm=False,
            pg_collection=groups.megatron,
        )
        settle_overlap(self, parallel, groups.device)

    def forward(self, patches: Tensor, grids: list[Grid]) -> Tensor:
        """patches (P, patch_dim) float -> (P, E). A frozen tower keeps no activations."""
        trainable = self.patch_embed.weight.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(trainable):
            num_patches = patches.shape[0]
            # Only sequence parallelism needs padding; the padded rows are a frame of their own and are cut off again.
            padding = -num_patches % self.groups.tp_size if self.sequence_parallel else 0
            hidden = F.pad(self.patch_embed(patches), (0, 0, 0, padding)).unsqueeze(1)
            angles = F.pad(self.rotary(grids), (0, 0, 0, padding))
            lengths = frame_lengths(grids) + ([padding] if padding else [])
            if self.sequence_parallel:
                hidden = scatter_to_sequence_parallel_region(hidden, group=self.groups.tp)
            hidden = self.blocks(
                hidden,
                attention_mask=None,
                packed_seq_params=Segments(
                    lengths=tuple(lengths), device=hidden.device, turn=Turn.by(angles, hidden.dtype)
                ),
            )
            if self.sequence_parallel:
                # The merger is replicated, so each rank already holds the whole gradient: backward takes its slice.
                hidden = gather_from_sequence_parallel_region(
                    hidden, tensor_parallel_output_grad=False, group=self.groups.tp
                )
            return hidden[:num_patches, 0]

    def rotary(self, grids: list[Grid]) -> Tensor:
        """Rotary angles of every patch, float32 (P, head_dim / 2): those of its row, then those of its column."""
        quarter = self.config.head_dim // 4
        inverse_frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
        cache: dict[tuple[int, int], Tensor] = {}
        pieces = []
        for frames, rows, columns in grids:
            if (rows, columns) not in cache:
                places = merge_block_places(rows, columns, self.config.spatial_merge_size)
                cache[rows, columns] = (places[:, :, None] * inverse_frequency).flatten(1)
            pieces.append(cache[rows, columns].repeat(frames, 1))
        return torch.cat(pieces).to(self.groups.device, non_blocking=True)


def frame_lengths(grids: list[Grid]) -> list[int]:
    """Patches of each frame, the tower's attention segments."""
    return [rows * columns for frames, rows, columns in grids for _ in range(frames)]


def merge_block_places(rows: int, columns: int, merge: int) -> Tensor:
    """(row, column) of each patch of one frame, int64 (rows * columns, 2), in merge-block order."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack((row, column), dim=-1)
    blocks = places.view(rows // merge, merge, columns // merge, merge, 2).transpose(1, 2)
    return blocks.reshape(-1, 2)


class Merger(torch.nn.Module):
    """Joins each 2x2 block of patches into one visual token of language width.

    Replicated over the tensor axis: it has few parameters (arXiv 2409.12191, section 2.3).
    """

    def __init__(
        self, config: VisionConfig, hidden_size: int, device: torch.device, dtype: torch.dtype, fused_norm: bool
    ) -> None:
        super().__init__()
        self.merged_dim = config.merged_dim
        norm = torch.nn.LayerNorm if fused_norm else ComposedLayerNorm
        self.norm = norm(config.embed_dim, eps=config.layernorm_eps, dtype=dtype, device=device)
        self.fc1 = torch.nn.Linear(config.merged_dim, config.merged_dim, dtype=dtype, device=device)
        self.fc2 = torch.nn.Linear(config.merged_dim, hidden_size, dtype=dtype, device=device)

    def forward(self, hidden: Tensor) -> Tensor:
        """(P, E) -> (V, H)."""
        blocks = self.norm(hidden).view(-1, self.merged_dim)
        return self.fc2(F.gelu(self.fc1(blocks)))
