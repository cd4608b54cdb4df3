"""What a vision and a language transformer layer are made of: megatron-core's parts, our norms and packed attention."""

import os

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from model.attention import PackedAttention
from parallel.config import KernelConfig, ParallelConfig, Recompute

_RECOMPUTE: dict[Recompute, dict[str, object]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm; megatron-core's wrapper of it refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        mark_partial_gradient(self, config)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, likewise."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        mark_partial_gradient(self, config)


class PlainRMSNorm(RMSNorm):
    """RMSNorm operation by operation in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        assert self.eps is not None
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight.float()).to(x.dtype)


class ComposedLayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm operation by operation in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight.float() + self.bias.float()).to(x.dtype)


class PlainLayerNorm(ComposedLayerNorm, LayerNorm):
    """ComposedLayerNorm as a layer of megatron-core's."""


def mark_partial_gradient(module: torch.nn.Module, config: TransformerConfig) -> None:
    """Tell gradient finishing to sum these over the tensor axis: each rank saw only its slice of the row."""
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of the CLIP-style vision tower (transformers' `quick_gelu`)."""
    return x * torch.sigmoid(1.702 * x)


def layer_spec(norm: type, causal: bool, kernels: KernelConfig) -> ModuleSpec:
    """A pre-norm transformer layer with packed attention."""
    attention = ModuleSpec(module=PackedAttention, params={"fused": kernels.fused_attention})
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal if causal else AttnMaskType.no_mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear, core_attention=attention, linear_proj=RowParallelLinear
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def shared_settings(
    parallel: ParallelConfig, recompute: Recompute, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    """TransformerConfig fields that both towers share."""
    return {
        **_RECOMPUTE[recompute],
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.sequence_parallel,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Weights are filled by canonical name (model/init.py), so that no layout changes them.
        "perform_initialization": False,
        "use_cpu_initialization": device.type != "cuda",
        "cuda_graph_scope": [],  # the default is deprecated, and says so for each tower
        # These fusions need Apex or TransformerEngine, or compile at the first step.
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
    }


def settle_overlap(tower: torch.nn.Module, parallel: ParallelConfig, device: torch.device) -> None:
    """Let messages of the tensor axis travel beside weight gradients, or have each waited for before.

    megatron-core 0.16.1 overlaps in the backward of every column-parallel layer, whatever its config's
    `async_tensor_model_parallel_allreduce` says, which it reads nowhere. What a row-parallel layer sends in forward is
    waited for in either case. Without overlap the layer is told that nothing is to be sent, and megatron-core's plain
    mappings around it send.

    Raises ValueError if kernels would not start in the order that the overlap counts on.
    """
    if parallel.tensor == 1:
        return
    if parallel.kernels.overlap_tensor:
        _check_launch_order(device)
        return
    for linear in tower.modules():
        if isinstance(linear, ColumnParallelLinear):
            linear.allreduce_dgrad = False  # its input then goes through copy_to_tensor_model_parallel_region
            if linear.sequence_parallel:
                linear.sequence_parallel = False
                linear.disable_grad_reduce = True  # gathering has the reduction as its own backward
                linear.register_forward_pre_hook(_gather_input)


def _gather_input(linear: ColumnParallelLinear, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (gather_from_sequence_parallel_region(inputs[0], group=linear.tp_group), *inputs[1:])


def _check_launch_order(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 10:  # Blackwell keeps it by itself
        return
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    if connections != "1":
        raise ValueError(
            f"parallel.kernels.overlap_tensor=true hides messages only if kernels start in the order of their launch, "
            f"but CUDA_DEVICE_MAX_CONNECTIONS is {connections}; launch/torchrun.sh sets it to 1 where it is unset: set "
            "it to 1, or parallel.kernels.overlap_tensor=false"
        )
