"""Hugging Face model folders: read box by box without loading the whole, write tensor by tensor.

Only safetensors are read: the older `.bin` files are pickles, which run code of whoever wrote them.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.hf_config import check_sizes, generation_config, hf_config, preprocessor_config, read_json, special_ids
from model.hf_weights import Piece, canonical_shape, hf_pieces, published_name, to_hf

if TYPE_CHECKING:
    from model.canonical import Box

MAX_SHARD_BYTES = 5_000_000_000
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class HfReader:
    """Canonical tensors of a Hugging Face folder. Use as a context manager: it holds the files open, memory-mapped.

    Args:
        folder: has model.safetensors, or shards and their index.
        config: sizes the tensors must have.
        parts: which of vision, merger, language are wanted; None is all that `config` has. A folder of plain Qwen2
            serves the language part of a model with vision.

    Raises:
        ValueError: tensors missing, of another shape, or that the model has no place for; all of them are named.
    """

    def __init__(self, folder: str | Path, config: ModelConfig, parts: Sequence[str] | None = None) -> None:
        self._folder = Path(folder)
        self._stack = ExitStack()
        self._table = {
            name: pieces
            for name, pieces in hf_pieces(config).items()
            if parts is None or name.partition(".")[0] in parts
        }
        self._slices: dict[str, Any] = {}
        try:
            self._open()
            self._check(config)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> "HfReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slices.clear()
        self._stack.close()

    def names(self) -> list[str]:
        """Canonical names that `read` answers."""
        return list(self._table)

    def shape(self, name: str) -> tuple[int, ...]:
        """Whole canonical shape of `name`."""
        return canonical_shape(self._table[name])

    def read(self, name: str, offset: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> Tensor:
        """One box of a canonical tensor, in the file's dtype, on CPU; the whole tensor when no box is given.

        Of a fused or reshaped tensor the rows that cover the box's first dim are read; of any other just the box.
        """
        pieces = self._table[name]
        offset = offset if offset is not None else (0,) * len(pieces[0].shape)
        shape = shape if shape is not None else canonical_shape(pieces)
        dim = pieces[0].dim
        parts = []
        for piece in pieces:
            start = max(offset[dim], piece.start)
            stop = min(offset[dim] + shape[dim], piece.start + piece.shape[dim])
            if start < stop:
                where = [(at, at + size) for at, size in zip(offset, shape, strict=True)]
                where[dim] = (start - piece.start, stop - piece.start)
                parts.append(self._read_piece(piece, where))
        return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]

    def _read_piece(self, piece: Piece, where: list[tuple[int, int]]) -> Tensor:
        source = self._slices[piece.hf_name]
        sizes = tuple(stop - start for start, stop in where)
        extra = len(piece.shape) - len(piece.hf_shape)
        if extra >= 0 and piece.shape == (1,) * extra + piece.hf_shape:
            return source[tuple(slice(*bounds) for bounds in where[extra:])].reshape(sizes)
        per_entry = piece.rows // piece.shape[0]
        first, last = (piece.first_row + at * per_entry for at in where[0])
        part = source[first:last].reshape(sizes[0], *piece.shape[1:])
        return part[(slice(None), *(slice(*bounds) for bounds in where[1:]))]

    def _open(self) -> None:
        index = self._folder / INDEX_FILE
        if index.is_file():
            files = sorted(set(read_json(index).get("weight_map", {}).values()))
            strange = [name for name in files if Path(name).name != name]
            if strange:
                raise ValueError(f"{index} names files outside of its folder: {strange[:3]}")
        else:
            files = sorted(path.name for path in self._folder.glob("*.safetensors"))
        absent = [name for name in files if not (self._folder / name).is_file()]
        if absent or not files:
            raise ValueError(
                f"{self._folder} lacks {', '.join(absent) or 'any *.safetensors file'}; pickled .bin weights are not "
                "read, convert them with transformers' save_pretrained first"
            )
        for name in files:
            opened = self._stack.enter_context(safe_open(self._folder / name, framework="pt", device="cpu"))
            for key in opened.keys():  # noqa: SIM118 - not a dict
                self._slices[published_name(key)] = opened.get_slice(key)

    def _check(self, config: ModelConfig) -> None:
        wanted = {piece.hf_name: piece.hf_shape for pieces in self._table.values() for piece in pieces}
        known = {piece.hf_name for pieces in hf_pieces(config).values() for piece in pieces}
        found = {name: tuple(view.get_shape()) for name, view in self._slices.items()}
        problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in found]
        problems += [
            f"{name} has shape {found[name]}, the model needs {shape}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ]
        extra = sorted(name for name in found if name not in known and not name.endswith(".inv_freq"))
        if config.language.tie_embeddings and "lm_head.weight" in extra and self._head_is_tied():
            extra.remove("lm_head.weight")
        problems += [f"no place for {name} {found[name]}" for name in extra]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise ValueError(f"{self._folder} does not fit model {config.name!r}: {shown}")

    def _head_is_tied(self) -> bool:
        embedding = self._slices.get("model.embed_tokens.weight")
        return embedding is not None and torch.equal(self._slices["lm_head.weight"][:], embedding[:])


def load_hf_into(
    parameters: Mapping[str, Tensor],
    boxes: "Mapping[str, Box]",
    folder: str | Path,
    config: ModelConfig,
    parts: Sequence[str] | None = None,
) -> None:
    """Copy a Hugging Face folder's weights into this rank's parameters in place, reading only what its boxes hold.

    Args:
        parameters, boxes: local parameters of this rank and the box of each, by local name.
        parts: which of vision, merger, language to take; None takes all that `config` has.

    Raises:
        ValueError: the folder does not fit `config`; the same on every rank, whatever it holds.
    """
    check_sizes(folder, config, parts)
    with HfReader(folder, config, parts) as reader:
        known = set(reader.names())
        for local_name, box in boxes.items():
            target = box.view(parameters[local_name]) if box.name in known else None
            if target is not None and target.numel():
                target.copy_(reader.read(box.name, box.offset, box.shape))


def write_hf(
    folder: str | Path,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    tokenizer_folder: str | Path,
    *,
    dtype: torch.dtype,
    min_pixels: int,
    max_pixels: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a folder that transformers' `from_pretrained` loads: weights, configs, preprocessor and tokenizer files.

    Args:
        folder: is created; must not hold a model already.
        read: gives one whole canonical tensor by name, asked once each, so that no more than one shard is held.
        tokenizer_folder: its files are copied and its special ids go into config.json.
        dtype: of every tensor written.
        min_pixels, max_pixels: the picture budget that the model was trained with, in pixels after resizing.

    Raises:
        ValueError: the folder is in use, or sizes and ids that transformers cannot express.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a model already (config.json); choose another folder or remove it")
    ids = special_ids(tokenizer_folder)
    described = hf_config(config, ids, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, config, read, dtype, max_shard_bytes)
    for name in TOKENIZER_FILES:
        if (Path(tokenizer_folder) / name).is_file():
            shutil.copyfile(Path(tokenizer_folder) / name, folder / name)
    _write_json(folder / "generation_config.json", generation_config(ids))
    if config.vision is not None:
        _write_json(folder / "preprocessor_config.json", preprocessor_config(config.vision, min_pixels, max_pixels))
    # Last: a folder that was cut short has no config.json, so nothing loads it.
    _write_json(folder / "config.json", described)
    return folder


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shards(table: Mapping[str, tuple[Piece, ...]], itemsize: int, max_bytes: int) -> tuple[list[list[str]], int]:
    """Canonical names of each shard in writing order, and the bytes of all."""
    shards: list[list[str]] = [[]]
    held = total = 0
    for name, pieces in table.items():
        size = math.prod(canonical_shape(pieces)) * itemsize
        if held and held + size > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
        total += size
    return shards, total


def _write_shards(
    folder: Path, config: ModelConfig, read: Callable[[str], Tensor], dtype: torch.dtype, max_bytes: int
) -> None:
    table = hf_pieces(config)
    shards, total = _shards(table, dtype.itemsize, max_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _convert(names, table, read, dtype)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _convert(
    names: Iterable[str], table: Mapping[str, tuple[Piece, ...]], read: Callable[[str], Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        whole = read(name)
        if tuple(whole.shape) != canonical_shape(table[name]):
            raise ValueError(f"{name} has shape {tuple(whole.shape)}, the model says {canonical_shape(table[name])}")
        tensors |= to_hf(table[name], whole.to(device="cpu", dtype=dtype))
    return tensors
