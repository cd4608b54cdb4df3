"""Reductions over a named axis; nothing else in the step calls torch.distributed reductions on plain numbers."""

import torch
import torch.distributed as dist

from parallel.groups import Groups


def sum_over(group: dist.ProcessGroup | None, values: list[float]) -> list[float]:
    """Sum a few host numbers over a group (None: the world), in fp64 and without touching the device."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total, group=group)
    return total.tolist()


def any_of(group: dist.ProcessGroup | None, value: bool) -> bool:
    """Whether `value` holds on any rank of a group (None: the world)."""
    return sum_over(group, [float(value)])[0] > 0


def from_last_pipeline_stage(groups: Groups, values: list[float]) -> list[float]:
    """Give numbers that only the last pipeline stage knows to its whole pipeline."""
    if groups.pp_size == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64)
    dist.broadcast(shared, src=dist.get_global_rank(groups.pp, groups.pp_size - 1), group=groups.pp)
    return shared.tolist()
