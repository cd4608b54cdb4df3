"""One pipeline stage of the vision-language model, in one or more chunks. Parts that live elsewhere are None.

Shapes: T tokens of a row, S supervised ones, P patches, V visual tokens, H width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from torch import Tensor

from model.attention import Segments
from model.config import ModelConfig
from model.language import LanguageModel
from model.placement import language_split
from model.rotary import Turn, mrope_angles
from model.vision import Grid, Merger, VisionTower
from parallel.config import ParallelConfig
from parallel.groups import Groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One microbatch on the device. `patches` exists on the first pipeline stage only, and only if the row has any."""

    tokens: Tensor
    """int64 (1, T)"""
    supervised: Tensor
    """int64 (S,), places of the row whose next token is to be learnt; one that is not stands in where there is none"""
    targets: Tensor
    """int64 (1, S), those next tokens; negative for a place that stands in"""
    sources: Tensor
    """int64 (1, S), the source of the sample that each is of; losses are told by it, nothing is computed from it"""
    positions: Tensor
    """int64 (3, 1, T), temporal, height and width position (M-RoPE)"""
    segments: Segments
    """Samples of the row"""
    grids: list[Grid]
    visual_index: Tensor
    """int64 (V,), places of the row that visual tokens fill, in patch order"""
    patches: Tensor | None
    """(P, patch_dim) in the model's dtype"""


class ModelChunk(torch.nn.Module):
    """A run of layers: vision tower -> merger -> visual tokens put into the embedded row -> decoder -> token losses.

    The first chunk of the first pipeline stage has the towers and the embedding, the last of the last the head.
    """

    model_type = ModelType.encoder_or_decoder  # asked for by megatron-core's schedules

    def __init__(
        self, config: ModelConfig, parallel: ParallelConfig, groups: Groups, dtype: torch.dtype, chunk: int
    ) -> None:
        super().__init__()
        self.groups = groups
        self.has_input = groups.is_first_pipeline_stage and chunk == 0
        self.sequence_parallel = parallel.sequence_parallel
        self.vision: VisionTower | None = None
        self.merger: Merger | None = None
        if config.vision is not None and self.has_input:
            self.vision = VisionTower(config.vision, parallel, groups, dtype)
            fused = parallel.kernels.fused_norms
            self.merger = Merger(config.vision, config.language.hidden_size, groups.device, dtype, fused)
        split = language_split(config, parallel)
        self.language = LanguageModel(config.language, parallel, groups, dtype, split, chunk)
        self.config = self.language.config  # the schedules look for it here

    def set_input_tensor(self, input_tensor: list[Tensor]) -> None:
        """Take the hidden states of the previous pipeline stage (called by the schedule)."""
        self.language.set_input_tensor(input_tensor)

    def forward(self, row: Row, with_loss: bool = True) -> Tensor:
        """Hidden states (T, 1, H) for the next stage; on the last stage token losses (1, S), or logits (1, T, V)."""
        sizes = self.language.sizes
        turn = Turn.by(mrope_angles(row.positions, sizes.rope_theta, sizes.mrope_section), self.config.params_dtype)
        segments = row.segments.turned(turn)
        hidden = self.language(self.embed(row) if self.has_input else None, segments)
        if not self.language.post_process:
            return hidden
        return self.language.losses(hidden, row.supervised, row.targets) if with_loss else self.language.logits(hidden)

    def embed(self, row: Row) -> Tensor:
        """Token embeddings with visual tokens in their places, (T, 1, H), split over the tensor axis if asked."""
        embedded = self.language.embedding(input_ids=row.tokens, position_ids=None)
        if row.patches is not None:
            assert self.vision is not None and self.merger is not None
            visual = self.merger(self.vision(row.patches, row.grids))
            embedded = embedded.index_copy(0, row.visual_index, visual.unsqueeze(1))
        if self.sequence_parallel:
            embedded = scatter_to_sequence_parallel_region(embedded, group=self.groups.tp)
        return embedded


class PipelineStage(torch.nn.Module):
    """Everything this rank holds of the model. One chunk, or several for interleaved 1F1B."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig, groups: Groups, dtype: torch.dtype) -> None:
        super().__init__()
        chunks = [ModelChunk(config, parallel, groups, dtype, chunk) for chunk in range(parallel.chunks)]
        self.chunks: Sequence[ModelChunk] = torch.nn.ModuleList(chunks)  # type: ignore[assignment]
