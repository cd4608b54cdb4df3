"""What a rank holds of a whole tensor, as boxes.

A checkpoint knows tensors of the whole model. What a rank holds of one is a tensor-parallel slice (one box), or, of the
optimizer's state, the run of elements that ZeRO-1 gave it, which is a few boxes:

    flat elements [3, 15) of a (4, 5) box      . . . x x
                                               x x x x x   -> rows 0, 1-2 cut into three boxes
                                               x x x x x
                                               . . . . .

Nothing is gathered: every rank writes its boxes, and reads whatever overlaps the boxes that it holds now.
"""

import math
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


def split_range(shape: Shape, start: int, stop: int) -> list[tuple[Shape, Shape]]:
    """Flat elements [start, stop) of a C-contiguous box as disjoint sub-boxes, in memory order.

    Args:
        shape: of the box, of any rank, () included.
        start, stop: 0 <= start <= stop <= number of elements.

    Returns:
        (offset, shape) of each, contiguous in the flat range; at most 2 * len(shape) - 1 of them, none empty.
    """
    assert 0 <= start <= stop <= math.prod(shape)
    if start == stop:
        return []
    if len(shape) <= 1:
        return [((start,), (stop - start,))] if shape else [((), ())]
    row = math.prod(shape[1:])
    first, head = divmod(start, row)
    last, tail = divmod(stop, row)
    if first == last:
        return _within(first, shape, head, tail)
    boxes = []
    if head:
        boxes += _within(first, shape, head, row)
        first += 1
    if first < last:
        boxes.append(((first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])))
    if tail:
        boxes += _within(last, shape, 0, tail)
    return boxes


def _within(entry: int, shape: Shape, start: int, stop: int) -> list[tuple[Shape, Shape]]:
    """`split_range` inside of one entry of the first dim."""
    return [((entry, *offset), (1, *size)) for offset, size in split_range(shape[1:], start, stop)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One box of a whole tensor, and the memory that holds it."""

    name: str
    whole: Shape
    """Shape of the whole tensor."""
    offset: Shape
    data: Tensor


def run_chunks(name: str, whole: Shape, offset: Shape, shape: Shape, start: int, data: Tensor) -> list[Chunk]:
    """A run of elements of a local box as chunks of the whole tensor; the chunks share `data`'s memory.

    Args:
        whole: shape of the whole tensor.
        offset, shape: the local box within it.
        start: the place of data[0] in the flattened local box.
        data: (n,) 1-D. Elements past the box's own (rows that pad the vocabulary lie last) belong to no chunk.
    """
    stop = min(start + data.numel(), math.prod(shape))
    chunks = []
    at = 0
    for sub_offset, sub_shape in split_range(shape, min(start, stop), stop):
        count = math.prod(sub_shape)
        place = tuple(outer + inner for outer, inner in zip(offset, sub_offset, strict=True))
        chunks.append(Chunk(name=name, whole=whole, offset=place, data=data[at : at + count].view(sub_shape)))
        at += count
    return chunks


def overlap(offset: Shape, shape: Shape, other_offset: Shape, other_shape: Shape) -> tuple[Shape, Shape] | None:
    """(offset, shape) of what two boxes share, None if that is nothing."""
    start = tuple(map(max, offset, other_offset))
    stop = tuple(min(a + n, b + m) for a, n, b, m in zip(offset, shape, other_offset, other_shape, strict=True))
    if any(last <= first for first, last in zip(start, stop, strict=True)):
        return None
    return start, tuple(last - first for first, last in zip(start, stop, strict=True))


def inside(offset: Shape, shape: Shape, box_offset: Shape) -> tuple[slice, ...]:
    """The box at `offset` as slices of a tensor that begins at `box_offset`."""
    return tuple(slice(a - b, a - b + n) for a, n, b in zip(offset, shape, box_offset, strict=True))
