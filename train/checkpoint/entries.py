"""Which boxes of which tensors a rank writes, and which it needs.

    language.decoder.layers.3.mlp.linear_fc1.weight                     in the model's dtype
    optimizer.master.<name>  optimizer.exp_avg.<name>  optimizer.exp_avg_sq.<name>      fp32, trainable tensors only

Names are canonical (model/canonical.py), with the shapes of the whole model.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from train.checkpoint.boxes import Chunk, run_chunks

if TYPE_CHECKING:
    from model.canonical import Box
    from parallel.groups import Groups
    from parallel.zero import Fragment

STATE_TENSORS = ("master", "exp_avg", "exp_avg_sq")
MODEL_PARTS = ("vision", "merger", "language")
OPTIMIZER = "optimizer"
_WORTH_SPLITTING = 1 << 16
"""Elements. A smaller box is written whole by one data rank, which its name decides."""


class Optimizer(Protocol):
    """What is asked of parallel.zero.ZeroOptimizer."""

    @property
    def steps_taken(self) -> int: ...

    def fragments(self) -> "list[Fragment]": ...

    def loaded(self, steps_taken: int) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Writer:
    """Place of a rank among those that hold the same weights: each writes its share of them."""

    tp_rank: int = 0
    dp_rank: int = 0
    dp_size: int = 1


ALONE = Writer()


def writer_of(groups: "Groups") -> Writer:
    """This rank of a world."""
    return Writer(tp_rank=groups.tp_rank, dp_rank=groups.dp_rank, dp_size=groups.dp_size)


def state_name(kind: str, name: str) -> str:
    """What one of STATE_TENSORS of a weight is stored as."""
    return f"{OPTIMIZER}.{kind}.{name}"


def part_of(name: str) -> str:
    """vision, merger, language or optimizer."""
    return name.partition(".")[0]


def weights_held(parameters: Mapping[str, Tensor], boxes: "Mapping[str, Box]") -> Iterator[Chunk]:
    """Every box of a weight that this rank holds, copies included."""
    for box, parameter in _placed(parameters, boxes):
        yield Chunk(name=box.name, whole=box.global_shape, offset=box.offset, data=box.view(parameter))


def weights_to_write(
    parameters: Mapping[str, Tensor], boxes: "Mapping[str, Box]", writer: Writer, parts: Iterable[str]
) -> Iterator[Chunk]:
    """This rank's share of the weights of `parts`: over all ranks each element is written once.

    What tensor ranks hold alike is tensor rank 0's. Data ranks hold everything alike and divide it into equal runs of
    elements, so that all of a world write, and none more than another.
    """
    taken = set(parts)
    for box, parameter in _placed(parameters, boxes):
        if part_of(box.name) not in taken or not box.owner or not (box.is_split or writer.tp_rank == 0):
            continue
        data = box.view(parameter)
        start, stop = _share(box.name, data.numel(), writer)
        yield from run_chunks(box.name, box.global_shape, box.offset, box.shape, start, data.view(-1)[start:stop])


def state_held(fragments: "Sequence[Fragment]", boxes: "Mapping[str, Box]", writer: Writer | None) -> Iterator[Chunk]:
    """The boxes of this rank's optimizer state: all of them, or with a `writer` those that it writes."""
    for fragment in fragments:
        box = boxes[fragment.param_name]
        # Parameters that fill an empty optimizer group belong to no part of the model and are no one's state.
        if part_of(box.name) not in MODEL_PARTS:
            continue
        if writer is not None and not (box.owner and (box.is_split or writer.tp_rank == 0)):
            continue
        for kind in STATE_TENSORS:
            data = fragment.tensors[kind].detach()
            name = state_name(kind, box.name)
            yield from run_chunks(name, box.global_shape, box.offset, box.shape, fragment.start, data)


def _placed(parameters: Mapping[str, Tensor], boxes: "Mapping[str, Box]") -> "Iterator[tuple[Box, Tensor]]":
    for local_name, parameter in parameters.items():
        box = boxes.get(local_name)
        if box is not None and part_of(box.name) in MODEL_PARTS:
            yield box, parameter


def _share(name: str, count: int, writer: Writer) -> tuple[int, int]:
    """[start, stop) of the `count` elements of a box that this data rank writes."""
    if count < _WORTH_SPLITTING:
        mine = zlib.crc32(name.encode()) % writer.dp_size == writer.dp_rank
        return (0, count) if mine else (0, 0)
    return count * writer.dp_rank // writer.dp_size, count * (writer.dp_rank + 1) // writer.dp_size
