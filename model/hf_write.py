"""Hugging Face model folders, written shard by shard: no more than one shard is in memory."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.hf_config import generation_config, hf_config, preprocessor_config, special_ids
from model.hf_weights import Piece, canonical_shape, hf_pieces, to_hf
from model.tensor_folder import INDEX_FILE

MAX_SHARD_BYTES = 5_000_000_000
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
