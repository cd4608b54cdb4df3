"""Weights that every tensor rank holds whole: how far the copies have drifted apart, and how they become one again.

Copies start alike and get the same gradients, but kernels that add up in no fixed order may part them. Instead of an
all-reduce every step, the drift is measured now and then, and the copies are averaged when a checkpoint is written
("offline reduction", arXiv 2409.12191 section 2.3).

Everything is taken relative to tensor rank 0's copy, the one that a checkpoint holds. A plain sum of equal fp32 copies
can round (three of them do, and eight in a ring), and would show drift where there is none.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Groups

_BITS = {2: torch.int16, 4: torch.int32}
"""Whole numbers of an element's size: compared as such, a nan equals itself."""


@torch.no_grad()
def largest_drift(copies: Sequence[Tensor], groups: Groups) -> float:
    """How far a copy lies from tensor rank 0's, relative to the larger norm of the two: the largest, over all ranks.

    0 where all copies are equal, at most 2, and infinite where one holds a value that is not finite.

    Args:
        copies: what this rank holds of tensors that tensor ranks hold alike, in the same order on each. Each costs one
            broadcast in its own dtype over the tensor axis.

    Returns:
        The same number on every rank of the world. Every rank calls it.
    """
    worst = torch.zeros((), device=groups.device)
    if groups.tp_size > 1:
        for copy in copies:
            worst = torch.maximum(worst, _relative_distance(copy, _first_copy(copy, groups)))
    return _largest_of_world(worst)


@torch.no_grad()
def have_parted(copies: Sequence[Tensor], groups: Groups) -> bool:
    """Whether any of these tensors has other bits on another rank of the tensor axis; equal on all of them.

    Args:
        copies: as in `largest_drift`, bf16 or fp32.
    """
    parted = torch.zeros((), dtype=torch.int32, device=groups.device)
    for copy in copies:
        first = _first_copy(copy, groups)
        parted |= (_bits(copy) != _bits(first)).any()
    dist.all_reduce(parted, op=dist.ReduceOp.MAX, group=groups.tp)
    return bool(parted)


@torch.no_grad()
def mean_copy(copy: Tensor, groups: Groups) -> Tensor:
    """The mean over the tensor axis, fp32, the same bits on each of its ranks. Where copies agree it is their value.

    Raises:
        ValueError: on every rank of the tensor axis, if a copy holds a value that is not finite: a mean would spread
            it to all.
    """
    first = _first_copy(copy, groups).float()
    apart = copy.float() - first
    dist.all_reduce(apart, group=groups.tp)
    mean = first + apart / groups.tp_size
    if not bool(torch.isfinite(mean).all()):
        raise ValueError(
            f"a weight of shape {tuple(copy.shape)}, its master or a moment is not finite on one of "
            f"{groups.tp_size} tensor ranks that should hold the same, so the copies have no mean and nothing is "
            "saved; go on from the checkpoint before with `triptych resume`"
        )
    return mean


def _first_copy(copy: Tensor, groups: Groups) -> Tensor:
    """Tensor rank 0's copy, in memory of its own."""
    first = copy.detach().clone(memory_format=torch.contiguous_format)
    source = dist.get_global_rank(groups.tp, 0)
    dist.broadcast(first.view(-1).view(torch.uint8), src=source, group=groups.tp)  # gloo does not know every dtype
    return first


def _relative_distance(copy: Tensor, first: Tensor) -> Tensor:
    """() fp32, infinite where either is not finite."""
    distance = torch.linalg.vector_norm(copy.float() - first)
    size = torch.maximum(_norm(copy), _norm(first)).clamp_min(torch.finfo(torch.float32).tiny)
    # As nan it would be lost on the way: a reduction may call any number larger.
    return torch.nan_to_num(distance / size, nan=torch.inf, posinf=torch.inf)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float32)


def _largest_of_world(worst: Tensor) -> float:
    seen = worst.double().cpu()  # the one wait for the device
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return float(seen)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(_BITS[tensor.element_size()])
