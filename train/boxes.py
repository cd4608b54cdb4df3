"""Any set of boxes of a whole tensor as one entry of `torch.distributed.checkpoint`.

A checkpoint knows tensors of the whole model. What a rank holds of one is a tensor-parallel slice (one box), or, of the
optimizer's state, the run of elements that ZeRO-1 gave it, which is a few boxes:

    flat elements [3, 15) of a (4, 5) box      . . . x x
                                               x x x x x   -> rows 0, 1-2 cut into three boxes
                                               x x x x x
                                               . . . . .

Nothing is gathered: every rank writes its boxes, and reads whatever overlaps the boxes that it holds now.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

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

    offset: Shape
    data: Tensor


def fragment_chunks(offset: Shape, shape: Shape, start: int, data: Tensor) -> list[Chunk]:
    """A run of elements of a local box as chunks of the whole tensor; the chunks share `data`'s memory.

    Args:
        offset, shape: the local box within the whole tensor.
        start: the place of data[0] in the flattened local parameter.
        data: (n,) 1-D. Elements past the box's own (rows that pad the vocabulary lie last) belong to no chunk.
    """
    stop = min(start + data.numel(), math.prod(shape))
    chunks = []
    at = 0
    for sub_offset, sub_shape in split_range(shape, min(start, stop), stop):
        count = math.prod(sub_shape)
        place = tuple(outer + inner for outer, inner in zip(offset, sub_offset, strict=True))
        chunks.append(Chunk(offset=place, data=data[at : at + count].view(sub_shape)))
        at += count
    return chunks


class BoxTensor(Tensor):
    """A tensor of the whole shape that holds only some boxes, in the form DCP asks (`_Checkpointable`).

    It takes no part in computing. An instance with no chunks is allowed: that rank neither writes nor reads.
    """

    chunks: list[Chunk]

    @staticmethod
    def __new__(cls, global_shape: Shape, chunks: Sequence[Chunk], dtype: torch.dtype) -> "BoxTensor":
        # DCP replaces whatever sits on the meta device, so this says cpu although it has no memory of its own.
        tensor = torch.Tensor._make_wrapper_subclass(cls, global_shape, dtype=dtype, device=torch.device("cpu"))
        tensor.chunks = [chunk for chunk in chunks if chunk.data.numel()]
        return tensor

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, torch.Size(chunk.offset)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=_place(chunk), properties=properties, size=self.size()),
            )
            for chunk in self.chunks
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_place(chunk) for chunk in self.chunks]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for chunk in self.chunks:
            if torch.Size(chunk.offset) == index.offset:
                return chunk.data
        raise AssertionError(f"{index.fqn}: no box at {index.offset} on this rank")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{func}: a BoxTensor only tells the checkpoint where boxes lie")


def _place(chunk: Chunk) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(chunk.offset), sizes=chunk.data.size())
