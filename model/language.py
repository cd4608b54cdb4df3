"""The Qwen2 decoder: megatron-core's GPTModel with our rotary positions and packed attention.

Shapes: T tokens of a row, S supervised ones, H width, V vocabulary (padded to a multiple of the tensor axis).
"""

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from model.attention import Segments
from model.config import LanguageConfig
from model.layers import PlainRMSNorm, RMSNorm, layer_spec, settle_overlap, shared_settings
from parallel.config import ParallelConfig
from parallel.groups import Groups


def padded_vocab(config: LanguageConfig, tp_size: int) -> int:
    """Vocabulary rows once each tensor rank holds the same number."""
    return config.vocab_size + -config.vocab_size % tp_size


class LanguageModel(GPTModel):
    """This pipeline stage's share of the decoder."""

    def __init__(
        self,
        config: LanguageConfig,
        parallel: ParallelConfig,
        groups: Groups,
        dtype: torch.dtype,
        split: tuple[int, ...],
        chunk: int,
    ) -> None:
        self.sizes = config
        num_layers = split[chunk * parallel.pipeline + groups.pp_rank]
        norm = RMSNorm if parallel.kernels.fused_norms else PlainRMSNorm
        super().__init__(
            config=language_transformer_config(config, parallel, groups, dtype, split),
            transformer_layer_spec=TransformerBlockSubmodules(
                layer_specs=[layer_spec(norm, causal=True, kernels=parallel.kernels)] * num_layers, layer_norm=norm
            ),
            vocab_size=padded_vocab(config, groups.tp_size),
            max_sequence_length=config.max_positions,
            pre_process=groups.is_first_pipeline_stage and chunk == 0,
            post_process=groups.is_last_pipeline_stage and chunk == parallel.chunks - 1,
            share_embeddings_and_output_weights=config.tie_embeddings,
            position_embedding_type="none",  # positions come with the segments: model/rotary.py
            # Visual tokens are put in before the row is split over the tensor axis.
            scatter_embedding_sequence_parallel=False,
            pg_collection=groups.megatron,
            vp_stage=chunk if parallel.chunks > 1 else None,
        )
        if self.post_process and self.config.sequence_parallel:
            self.output_layer.sequence_parallel = False  # `_head` has gathered already, and reduces in backward
            self.output_layer.disable_grad_reduce = True
        settle_overlap(self, parallel, groups.device)
        num_real = config.vocab_size - groups.tp_rank * (padded_vocab(config, groups.tp_size) // groups.tp_size)
        self.num_real_logits = max(0, num_real)

    def setup_embeddings_and_output_layer(self) -> None:
        """Nothing: a tied embedding starts equal on both pipeline stages because weights are filled by name.

        megatron-core's own version moves the weight with `.cuda()` and all-reduces it inside the constructor.
        """

    def forward(self, decoder_input: Tensor | None, segments: Segments) -> Tensor:
        """Embedded row (T, 1, H), None where a previous pipeline stage sends it -> hidden states (T, 1, H).

        Both are split over the tensor axis under sequence parallelism.
        """
        return self.decoder(hidden_states=decoder_input, attention_mask=None, packed_seq_params=segments)

    def losses(self, hidden: Tensor, supervised: Tensor, targets: Tensor) -> Tensor:
        """Hidden states (T, 1, H), places (S,), next tokens (1, S) -> loss of each of them, float32 (1, S).

        No other place gets logits: pictures and questions are most of a row, and a row of logits is as wide as the
        vocabulary.
        """
        return self.compute_language_model_loss(targets, self._head(hidden, supervised))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (T, 1, H) -> (1, T, V / tensor)."""
        return self._head(hidden).transpose(0, 1)

    def _head(self, hidden: Tensor, places: Tensor | None = None) -> Tensor:
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, group=self.pg_collection.tp)
        if places is not None:
            hidden = hidden.index_select(0, places)
        tied = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits, _ = self.output_layer(hidden, weight=tied)
        return logits

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels (1, S), logits (S, 1, V / tensor) -> loss of each token, float32 (1, S).

        Rows that only pad the vocabulary cannot be predicted.
        """
        if self.num_real_logits < logits.shape[-1]:
            logits[..., self.num_real_logits :] = float("-inf")  # in place: a copy would be as large again
        return super().compute_language_model_loss(labels, logits)


def language_transformer_config(
    config: LanguageConfig, parallel: ParallelConfig, groups: Groups, dtype: torch.dtype, split: tuple[int, ...]
) -> TransformerConfig:
    """megatron-core's view of the decoder, and of how pipeline messages look."""
    return TransformerConfig(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_query_groups=config.num_kv_heads,
        kv_channels=config.head_dim,
        ffn_hidden_size=config.ffn_size,
        add_bias_linear=False,
        add_qkv_bias=True,
        gated_linear_unit=True,
        activation_func=F.silu,
        normalization="RMSNorm",
        layernorm_epsilon=config.rms_norm_eps,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.chunks if parallel.chunks > 1 else None,
        pipeline_model_parallel_layout=layer_layout(split) if groups.pp_size > 1 else None,
        # Interleaving sends both ways between the same two ranks, which gloo cannot tell apart in one batch.
        batch_p2p_comm=parallel.chunks == 1,
        pipeline_dtype=dtype,
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # demanded by variable_seq_lengths although there is no MoE
        calculate_per_token_loss=True,  # else the schedule divides the loss by the number of microbatches
        deallocate_pipeline_outputs=True,
        **shared_settings(parallel, parallel.recompute.language, dtype, groups.device),
    )


def layer_layout(split: tuple[int, ...]) -> list[list[str]]:
    """A split as megatron-core spells it: embedding, decoder layers and loss of each piece of the pipeline."""
    stages = [["decoder"] * count for count in split]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages
