"""What must happen to gradients between backward and the data-parallel reduction."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Groups


def finish_model_gradients(
    parameters: Iterable[torch.nn.Parameter],
    tied: Sequence[torch.nn.Parameter],
    gradient: Callable[[torch.nn.Parameter], Tensor],
    groups: Groups,
) -> None:
    """Complete gradients that are partial sums inside one replica. Every trainable parameter has a gradient by now.

    Args:
        parameters: this rank's trainable parameters.
        tied: the tied embedding's parameter on the first and last pipeline stage, else empty.
        gradient: where a parameter's gradient is kept (`.grad`, or an fp32 accumulator under bf16).
    """
    if groups.tp_size > 1:
        partial = [p for p in parameters if getattr(p, "sequence_parallel", False)]
        _sum_in_one_message([gradient(p) for p in partial], groups.tp)
    if groups.tied is not None:
        _sum_in_one_message([gradient(p) for p in tied], groups.tied)


def _sum_in_one_message(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    if len(tensors) < 2:
        for tensor in tensors:  # a tied embedding: a copy would be as large again
            dist.all_reduce(tensor, group=group)
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
