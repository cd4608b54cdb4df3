"""Defects for tests/prove/parallel_precision.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.prove.planting import Mend, replace_name


def _round(tensor: Tensor) -> None:
    tensor.copy_(tensor.bfloat16())


def bf16_accumulation() -> Mend:
    """Gradients of microbatches are added up in bf16."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    def make(add: Any) -> Any:
        def planted(self: Any, parameter: Any, group: int, place: int, clear_lp_grads: bool) -> None:
            add(self, parameter, group, place, clear_lp_grads)
            _round(self.fp32_groups_gradients[group][place])

        return planted

    return replace_name(BF16_Optimizer, "_update_hp_grad", make)


def masters_dropped() -> Mend:
    """What bf16 weights cannot hold of an update is lost."""
    from parallel.zero import ZeroOptimizer

    def make(step: Any) -> Any:
        def planted(self: Any) -> float:
            norm = step(self)
            with torch.no_grad():
                for flat in self._flat_masters() if self._bf16 else ():
                    _round(flat)
            return norm

        return planted

    return replace_name(ZeroOptimizer, "step", make)


def bf16_data_reduction() -> Mend:
    """Gradients travel over the data axis in bf16."""
    import parallel.zero

    def make(configure: Any) -> Any:
        return lambda *arguments: configure(*arguments) | {"communication_data_type": "bf16"}

    return replace_name(parallel.zero, "deepspeed_config", make)


def bf16_model_reduction() -> Mend:
    """Partial gradients of norms, and those of a tied embedding, are added up in bf16."""
    import parallel.gradients

    def make(total: Any) -> Any:
        def planted(tensors: list[Tensor], group: Any) -> None:
            total(tensors, group)
            for tensor in tensors:
                _round(tensor)

        return planted

    return replace_name(parallel.gradients, "_sum_in_one_message", make)


def bf16_loss() -> Mend:
    """The loss is added up in bf16."""
    from parallel.schedule import Schedule

    def make(run: Any) -> Any:
        def planted(self: Any, microbatches: Any, lengths: Any, loss: Any, **more: Any) -> Any:
            def rounded(row: Any, output: Any) -> Any:
                scalar, report = loss(row, output)
                return scalar, report.bfloat16().float()

            return run(self, microbatches, lengths, rounded, **more)

        return planted

    return replace_name(Schedule, "run", make)


def device_chooses_precision() -> Mend:
    """A CPU computes in fp32, whatever the recipe says."""
    from tests.harness import precision

    def make(start: Any) -> Any:
        return lambda *arguments, **keywords: start(*arguments, **keywords | {"precision": "fp32"})

    return replace_name(precision, "start", make)


def plain_norm_in_bf16() -> Mend:
    """A norm that is written out computes in the precision of its input."""
    from model.layers import ComposedLayerNorm

    def forward(self: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return centred * scale * self.weight + self.bias

    return replace_name(ComposedLayerNorm, "forward", lambda _: forward)


def overlap_unread() -> Mend:
    """Messages of the tensor axis are hidden, whatever the recipe says."""
    import model.language

    return replace_name(model.language, "settle_overlap", lambda _: lambda *given: None)


def input_gradient_unsummed() -> Mend:
    """Without overlap nobody sums the input's gradient over the tensor axis."""
    from megatron.core.tensor_parallel import layers

    return replace_name(layers, "copy_to_tensor_model_parallel_region", lambda _: lambda hidden, group: hidden)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "bf16_accumulation": (bf16_accumulation, ("precision/accumulation",)),
    "masters_dropped": (masters_dropped, ("precision/curve/seed 0",)),
    "bf16_data_reduction": (bf16_data_reduction, ("precision/sums/DP2",)),
    "bf16_model_reduction": (bf16_model_reduction, ("precision/sums/TP2+SP",)),
    "bf16_tied_reduction": (bf16_model_reduction, ("precision/sums/PP2",)),
    "bf16_loss": (bf16_loss, ("precision/accumulation",)),
    "device_chooses_precision": (device_chooses_precision, ("precision/dtypes",)),
    "plain_norm_in_bf16": (plain_norm_in_bf16, ("precision/dtypes",)),
    "overlap_unread": (overlap_unread, ("precision/kernels/TP2",)),
    "input_gradient_unsummed": (input_gradient_unsummed, ("precision/kernels/TP2",)),
}
