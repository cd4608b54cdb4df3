"""Weights out of Hugging Face folders, box by box: a rank reads the rows it holds and no others."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import ModelConfig
from model.hf_weights import Piece, canonical_shape, hf_pieces, published_name
from model.tensor_folder import TensorFolder

if TYPE_CHECKING:
    from model.canonical import Box

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_SHOWN = 24  # problems: two language layers of missing tensors, not thousands
HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"


class PieceReader:
    """Canonical tensors of a folder, by a table of the pieces that make them."""

    def __init__(self, folder: TensorFolder, table: Mapping[str, tuple[Piece, ...]]) -> None:
        self.folder = folder
        self.table = table

    def names(self) -> list[str]:
        """Canonical names that `read` answers."""
        return list(self.table)

    def shape(self, name: str) -> tuple[int, ...]:
        """Whole canonical shape of `name`."""
        return canonical_shape(self.table[name])

    def dtype(self, name: str) -> torch.dtype:
        """What `read` gives `name` in: the narrowest dtype that holds every value of its pieces."""
        return reduce(torch.promote_types, self._dtypes(name))

    def widened(self) -> list[str]:
        """Names whose pieces are stored in several dtypes, so that `read` widens some of them."""
        return [name for name in self.table if len(self._dtypes(name)) > 1]

    def _dtypes(self, name: str) -> set[torch.dtype]:
        return {_FLOATS[self.folder.dtype(piece.hf_name)] for piece in self.table[name]}

    def problems(self) -> list[str]:
        """One entry for each tensor that is missing, of another shape, or no plain floating-point one."""
        wanted = {piece.hf_name: piece.hf_shape for pieces in self.table.values() for piece in pieces}
        found = set(self.folder.names())
        problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in found]
        for name, shape in wanted.items():
            if name not in found:
                continue
            if self.folder.shape(name) != shape:
                problems.append(f"{name} has shape {self.folder.shape(name)}, the model needs {shape}")
            elif self.folder.dtype(name) not in _FLOATS:
                problems.append(f"{name} is {self.folder.dtype(name)}; quantised weights cannot be trained")
        return problems

    def read(self, name: str) -> Tensor:
        """A whole canonical tensor on CPU, in its `dtype`: no bit of the file is lost."""
        whole = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read_into(whole, name, (0,) * whole.dim())
        return whole

    @torch.no_grad()
    def read_into(self, target: Tensor, name: str, offset: Sequence[int]) -> None:
        """Copy the box of `name` that starts at `offset` and has target's shape into `target`, with its dtype.

        Of a fused or reshaped tensor the rows that cover the box's first dim are read; of any other just the box.
        Beside `target` at most one stored tensor is in memory.
        """
        for piece in self.table[name]:
            dim = piece.dim
            start = max(offset[dim], piece.start)
            stop = min(offset[dim] + target.shape[dim], piece.start + piece.shape[dim])
            if start >= stop:
                continue
            where = [(at, at + size) for at, size in zip(offset, target.shape, strict=True)]
            where[dim] = (start - piece.start, stop - piece.start)
            with self.folder.open(piece.hf_name) as view:
                target.narrow(dim, start - offset[dim], stop - start).copy_(_cut(view, piece, where))


def _cut(view: "Tensor", piece: Piece, where: list[tuple[int, int]]) -> Tensor:
    """Entries `where` of a piece, out of its stored tensor."""
    extra = len(piece.shape) - len(piece.hf_shape)
    if extra >= 0 and piece.shape == (1,) * extra + piece.hf_shape:
        part: Tensor = view[tuple(slice(*bounds) for bounds in where[extra:])]
        return part.reshape(tuple(stop - start for start, stop in where))
    per_entry = piece.rows // piece.shape[0]
    first, last = (piece.first_row + at * per_entry for at in where[0])
    part = piece.rows_to_entries(view[first:last])
    return part[(slice(None), *(slice(*bounds) for bounds in where[1:]))]


def open_hf(folder: str | Path, config: ModelConfig, parts: Sequence[str] | None = None) -> PieceReader:
    """A Qwen2-VL or plain Qwen2 folder, in published or transformers' newer names.

    Args:
        config: sizes the tensors must have.
        parts: which of vision, merger, language are wanted; None is all that `config` has. A folder of plain Qwen2
            serves the language part of a model with vision.

    Raises:
        ValueError: tensors missing, of another shape, or that the model has no place for, and a head that is not the
            embedding though `config` ties them; all of them are named.
    """
    opened = TensorFolder(folder, published_name)
    whole = hf_pieces(config)
    table = {name: pieces for name, pieces in whole.items() if parts is None or name.partition(".")[0] in parts}
    reader = PieceReader(opened, table)
    known = {piece.hf_name for pieces in whole.values() for piece in pieces}
    known.add(HEAD)  # its own rule, below
    extra = sorted(name for name in opened.names() if name not in known and not name.endswith(".inv_freq"))
    heads = head_problems(opened, config) if parts is None or "language" in parts else []
    refuse(folder, config, reader.problems() + heads + [f"no place for {name} {opened.shape(name)}" for name in extra])
    return reader


def refuse(folder: str | Path, config: ModelConfig, problems: Sequence[str]) -> None:
    """ValueError that names the problems, if there are any."""
    if problems:
        more = len(problems) - _SHOWN
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{folder} does not fit model {config.name!r}: {shown}")


def head_problems(folder: TensorFolder, config: ModelConfig) -> list[str]:
    """What is wrong with a head that is stored beside tied embeddings: it must be the embedding, bit for bit.

    transformers 5.23 leaves a head that differs as it is, whatever config.json says of ties, and computes with it.
    Every rank has to know, and reads both whole; a piece at a time, each mapped anew, so that neither stays in memory.
    """
    stored = folder.names()
    if not config.language.tie_embeddings or HEAD not in stored:
        return []
    if _EMBEDDING not in stored or not folder.shape(_EMBEDDING):
        return []  # which is told as any tensor that is missing or has another shape
    same = all(of(HEAD) == of(_EMBEDDING) for of in (folder.shape, folder.dtype))
    for first in range(0, folder.shape(HEAD)[0] if same else 0, 16384):
        with folder.open(HEAD) as ours, folder.open(_EMBEDDING) as theirs:
            rows = (view[first : first + 16384].view(torch.uint8) for view in (ours, theirs))
            same = same and torch.equal(*rows)
    if same:
        return []
    return [f"{HEAD} is another tensor than {_EMBEDDING}, though the embeddings are said to be tied; remove or mend it"]


def fill_boxes(parameters: Mapping[str, Tensor], boxes: "Mapping[str, Box]", reader: PieceReader) -> None:
    """Copy every box that `reader` knows into this rank's parameter of it."""
    for target, box in _known(parameters, boxes, reader):
        if target.numel():
            reader.read_into(target, box.name, box.offset)


def _known(
    parameters: Mapping[str, Tensor], boxes: "Mapping[str, Box]", reader: PieceReader
) -> "Iterator[tuple[Tensor, Box]]":
    names = set(reader.names())
    for local_name, box in boxes.items():
        if box.name in names:
            yield box.view(parameters[local_name]), box
