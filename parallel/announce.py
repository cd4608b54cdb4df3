"""Tell a replica the lengths and the integers of its microbatches, once a step, before the pipeline starts.

One broadcast of a table of fixed size (how long each field of each microbatch is), one of all integers in a row, and
the pixels to the first pipeline stage's tensor group alone. Afterwards no rank asks another for a shape.
Source of the idea: arXiv 2409.12191, section 2.3.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Groups


def announce_integers(
    rows: Sequence[Sequence[Tensor]] | None, num_rows: int, num_fields: int, groups: Groups
) -> list[list[Tensor]]:
    """Give every rank of a replica the int64 fields of each microbatch, flattened, on the host.

    Args:
        rows: on the reader, `num_rows` microbatches of `num_fields` int64 tensors of any shape; None elsewhere.
        num_rows: microbatches of this replica in the step; every rank knows it from the recipe.

    Returns:
        The same fields on every rank, each 1-D. Lengths differ freely from microbatch to microbatch.
    """
    lengths = torch.zeros(num_rows, num_fields, dtype=torch.int64)
    if rows is not None:
        assert len(rows) == num_rows and all(len(row) == num_fields for row in rows)
        lengths = torch.tensor([[field.numel() for field in row] for row in rows], dtype=torch.int64)
    if groups.replica.size() > 1:
        dist.broadcast(lengths, src=groups.reader_rank, group=groups.replica)
    table = lengths.tolist()
    if rows is not None:
        payload = torch.cat([field.reshape(-1) for row in rows for field in row])
    else:
        payload = torch.empty(sum(map(sum, table)), dtype=torch.int64)
    if groups.replica.size() > 1:
        dist.broadcast(payload, src=groups.reader_rank, group=groups.replica)
    fields = iter(payload.split([length for row in table for length in row]))
    return [[next(fields) for _ in row] for row in table]


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
