"""Tell a replica the lengths and the integers of its microbatches, once a step, before the pipeline starts.

One broadcast of a table of fixed size (a line of counts for each microbatch), one of all integers in a row, whose
length follows from the table, and the pixels to the first pipeline stage's tensor group alone. Afterwards no rank asks
another for a shape. Source of the idea: arXiv 2409.12191, section 2.3.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Groups


def announce_integers(values: Tensor | None, count: int, groups: Groups) -> Tensor:
    """Give every rank of a replica the reader's integers, on the host.

    Args:
        values: on the reader, int64 (count,); None elsewhere.
        count: known to every rank beforehand, from the recipe or from what was announced before.
    """
    if values is None:
        values = torch.empty(count, dtype=torch.int64)
    assert values.shape == (count,) and values.dtype == torch.int64
    if groups.replica.size() > 1:
        dist.broadcast(values, src=groups.reader_rank, group=groups.replica)
    return values


def share_pixels(pixels: Tensor | None, shape: tuple[int, int], dtype: torch.dtype, groups: Groups) -> Tensor | None:
    """Give one microbatch's patches to the tensor group of the first pipeline stage, on the device.

    Returns None on other pipeline stages and for a microbatch without pictures.
    """
    if not groups.is_first_pipeline_stage or shape[0] == 0:
        return None
    if groups.is_reader:
        assert pixels is not None
        shared = pixels.to(device=groups.device, dtype=dtype, non_blocking=True)
    else:
        shared = torch.empty(shape, dtype=dtype, device=groups.device)
    if groups.tp_size > 1:
        dist.broadcast(shared, src=groups.reader_rank, group=groups.tp)
    return shared
