"""Weights that every tensor rank holds whole: how far the copies have drifted apart, and how they become one again.

Copies start alike and get the same gradients, but kernels that add up in no fixed order may part them. Instead of an
all-reduce every step, the drift is measured now and then, and the copies are averaged when a checkpoint is written
("offline reduction", arXiv 2409.12191 section 2.3).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Groups


@torch.no_grad()
def largest_drift(copies: Sequence[Tensor], groups: Groups) -> float:
    """Largest relative distance of a copy from the mean of all copies, over the given tensors; equal on every rank.

    Args:
        copies: what this rank holds of tensors that tensor ranks hold alike, in the same order on each. Each costs one
            all-reduce of its size in fp32.
    """
    worst = torch.zeros((), device=groups.device)
    if groups.tp_size > 1:
        for copy in copies:
            mean = mean_copy(copy, groups)
            worst = torch.maximum(worst, (copy.float() - mean).norm() / mean.norm().clamp_min(1e-30))
    seen = worst.double().cpu()  # the one wait for the device
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return float(seen)


@torch.no_grad()
def have_parted(copies: Sequence[Tensor], groups: Groups) -> bool:
    """Whether any of these tensors has another value on another rank of the tensor axis; equal on all of them."""
    parted = False
    for copy in copies:
        # One message: the largest value and the largest of the negated, which is minus the smallest.
        ends = torch.stack((copy.float(), -copy.float()))
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=groups.tp)
        parted = parted or not torch.equal(ends[0], -ends[1])
    return parted


@torch.no_grad()
def mean_copy(copy: Tensor, groups: Groups) -> Tensor:
    """The mean over the tensor axis, fp32."""
    mean = copy.float().clone()
    dist.all_reduce(mean, group=groups.tp)
    return mean / groups.tp_size
