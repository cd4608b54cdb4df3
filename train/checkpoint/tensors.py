"""Files of boxes, and whole tensors out of them.

A file is an ordinary safetensors file. Its tensors are boxes: `NAME@3,0` is the box of tensor NAME that begins at row
3, column 0. `shapes` in its metadata has the shapes of the whole tensors, as JSON. A file says all of itself; which
files a checkpoint has is said by its files.json (train/checkpoint/commits.py).
"""

import itertools
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.checkpoint import disk
from train.checkpoint.boxes import Chunk, Shape, inside, overlap

FORMAT = "triptych boxes 1"
_WORDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_WORDS |= {torch.uint8: "U8", torch.int64: "I64"}  # of random states
_DTYPES = {word: dtype for dtype, word in _WORDS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredBox:
    """One box in a file."""

    name: str
    whole: Shape
    offset: Shape
    shape: Shape
    dtype: torch.dtype
    file: str
    """Its key in files.json."""

    @property
    def key(self) -> str:
        """What it is called in its file."""
        return _key(self.name, self.offset)


def write_boxes(path: Path, chunks: Sequence[Chunk], between: Callable[[], object] = lambda: None) -> disk.Digest:
    """Write chunks that lie in host memory into a new file. Raises OSError, and what `between` raises (disk.py)."""
    described = [(chunk.name, chunk.whole, chunk.offset, tuple(chunk.data.shape), chunk.data.dtype) for chunk in chunks]
    return _write(path, described, lambda number: chunks[number].data, between)


class Described(Protocol):
    """What knows whole tensors by name."""

    def shape(self, name: str) -> Shape: ...

    def dtype(self, name: str) -> torch.dtype: ...


def write_whole(path: Path, like: Described, names: Sequence[str], make: Callable[[str], Tensor]) -> disk.Digest:
    """Write whole tensors into a new file with one of them in memory at a time.

    Args:
        like: has their shapes and dtypes.
        make: gives one tensor by name, on CPU, asked once each.

    Raises what `make` raises, and OSError.
    """
    described = [
        (name, like.shape(name), (0,) * len(like.shape(name)), like.shape(name), like.dtype(name)) for name in names
    ]
    return _write(path, described, lambda number: make(names[number]))


def _write(
    path: Path,
    described: Sequence[tuple[str, Shape, Shape, Shape, torch.dtype]],
    data: Callable[[int], Tensor],
    between: Callable[[], object] = lambda: None,
) -> disk.Digest:
    # safetensors wants every tensor aligned to its own elements: the widest first.
    order = sorted(range(len(described)), key=lambda number: -described[number][4].itemsize)
    shapes = {name: whole for name, whole, *_ in described}
    header: dict[str, object] = {"__metadata__": {"format": FORMAT, "shapes": json.dumps(shapes)}}
    at = 0
    for number in order:
        name, _, offset, shape, dtype = described[number]
        stop = at + math.prod(shape) * dtype.itemsize
        header[_key(name, offset)] = {"dtype": _WORDS[dtype], "shape": shape, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pieces = (_bytes(data(number)) for number in order)
    return disk.write(path, itertools.chain((struct.pack("<Q", len(text)), text), pieces), between)


def read_header(path: Path, file: str) -> list[StoredBox]:
    """The boxes of a file, which is known as `file`. Raises ValueError if it is no such file, OSError."""
    found = []
    try:
        with safe_open(path, framework="pt") as opened:
            told = opened.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError(f"{path} has format {told.get('format')!r}, this code reads {FORMAT!r}")
            shapes = json.loads(told["shapes"])
            for key in opened.keys():  # noqa: SIM118  # it is no mapping
                name, _, place = key.rpartition("@")
                stored = opened.get_slice(key)
                box = StoredBox(
                    name=name,
                    whole=tuple(shapes[name]),
                    offset=tuple(map(int, place.split(","))) if place else (),
                    shape=tuple(stored.get_shape()),
                    dtype=_DTYPES[stored.get_dtype()],
                    file=file,
                )
                if not len(box.whole) == len(box.offset) == len(box.shape):
                    raise ValueError(f"box {key} is one of a tensor with {len(box.whole)} dims")
                found.append(box)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no boxes: {error}") from error
    return found


class TensorReader:
    """Whole tensors of a verified checkpoint, or boxes of them; and names, shapes and dtypes of all."""

    def __init__(self, files: Mapping[str, Path], headers: Iterable[StoredBox] | None = None) -> None:
        """`files`: those that hold tensors, by their key in files.json. `headers`: what `read_header` gave for them.

        Raises ValueError for boxes that overlap or leave a hole, OSError.
        """
        self._files = files
        if headers is None:
            headers = [box for file, path in files.items() for box in read_header(path, file)]
        self._boxes: dict[str, list[StoredBox]] = {}
        for box in headers:
            self._boxes.setdefault(box.name, []).append(box)
        for name, boxes in self._boxes.items():
            _check_whole(name, boxes)

    def names(self) -> list[str]:
        return sorted(self._boxes)

    def holds(self, name: str) -> bool:
        return name in self._boxes

    def shape(self, name: str) -> Shape:
        return self._boxes[name][0].whole

    def dtype(self, name: str) -> torch.dtype:
        return self._boxes[name][0].dtype

    def read(self, name: str) -> Tensor:
        """One tensor on CPU; ValueError if the checkpoint has none of that name."""
        self.check({name: None})
        whole = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into([Chunk(name=name, whole=self.shape(name), offset=(0,) * whole.dim(), data=whole)])
        return whole

    def check(self, wanted: Mapping[str, Shape | None]) -> None:
        """ValueError naming every tensor that is absent or, where a shape is given, has another."""
        wrong = [f"missing {name}" for name in wanted if name not in self._boxes]
        for name, shape in wanted.items():
            if shape is not None and name in self._boxes and self.shape(name) != shape:
                wrong.append(f"{name} has shape {self.shape(name)}, {shape} is needed")
        if wrong:
            shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
            raise ValueError(f"the checkpoint does not fit: {shown}")

    @torch.no_grad()
    def read_into(self, chunks: Iterable[Chunk]) -> None:
        """Fill the memory of chunks, whatever boxes their tensors are stored in. Names and shapes were checked before.

        Beside the chunks the part of one stored box that they need is in memory. Raises ValueError, OSError.
        """
        for chunk in chunks:
            shape = tuple(chunk.data.shape)
            for box in self._boxes[chunk.name]:
                shared = overlap(chunk.offset, shape, box.offset, box.shape)
                if shared is not None:
                    chunk.data[inside(*shared, chunk.offset)].copy_(self._part(box, *shared))

    def _part(self, box: StoredBox, offset: Shape, shape: Shape) -> Tensor:
        # Opened anew each time, which takes a millisecond: pages of a mapping that stays open count as our memory.
        with safe_open(self._files[box.file], framework="pt") as opened:
            if not shape:
                return opened.get_tensor(box.key)
            return opened.get_slice(box.key)[inside(offset, shape, box.offset)]


def _check_whole(name: str, boxes: list[StoredBox]) -> None:
    first = boxes[0]
    if any((box.whole, box.dtype) != (first.whole, first.dtype) for box in boxes):
        raise ValueError(f"boxes of {name} disagree on its shape or dtype")
    for box in boxes:
        ends = (start + size for start, size in zip(box.offset, box.shape, strict=True))
        if any(end > size for end, size in zip(ends, box.whole, strict=True)) or min(box.offset, default=0) < 0:
            raise ValueError(f"a box of {name} at {box.offset} ends beyond its shape {box.whole}")
    held, needed = sum(math.prod(box.shape) for box in boxes), math.prod(first.whole)
    if held != needed or _any_overlap(boxes):
        raise ValueError(f"boxes of {name} overlap or leave a hole: they hold {held} of {needed} elements")


def _any_overlap(boxes: list[StoredBox]) -> bool:
    """Of boxes sorted by where they begin in the first dim, each is compared with those that it reaches."""
    ordered = sorted(boxes, key=lambda box: box.offset)
    for number, box in enumerate(ordered):
        for later in ordered[number + 1 :]:
            if box.offset and later.offset[0] >= box.offset[0] + box.shape[0]:
                break
            if overlap(box.offset, box.shape, later.offset, later.shape) is not None:
                return True
    return False


def _key(name: str, offset: Shape) -> str:
    return f"{name}@{','.join(map(str, offset))}"


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()
