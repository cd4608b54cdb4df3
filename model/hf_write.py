"""Hugging Face model folders, written shard by shard: no more than one shard is in memory."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.hf_config import hf_config, special_ids
from model.hf_processor import copy_tokenizer, generation_config, preprocessor_config
from model.hf_weights import Piece, canonical_shape, common_dtype, hf_pieces, to_hf
from model.json_file import write_json
from model.tensor_folder import INDEX_FILE

MAX_SHARD_BYTES = 5_000_000_000


def write_hf(
    folder: str | Path,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    tokenizer_folder: str | Path,
    *,
    dtype: torch.dtype | Callable[[str], torch.dtype],
    min_pixels: int,
    max_pixels: int,
    chat_template: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a folder that transformers' `from_pretrained` loads: weights, configs, preprocessor and tokenizer files.

    Args:
        folder: is created; must be empty.
        read: gives one whole canonical tensor by name, asked once each. One shard is held, and while a tensor is added
            to it that tensor twice.
        tokenizer_folder: its files are copied and its special ids go into config.json.
        dtype: of every tensor written, or of each by its canonical name; config.json then names that of most weights.
        min_pixels, max_pixels: the picture budget that the model was trained with, in pixels after resizing.
        chat_template: jinja, for a model with vision whose tokenizer folder has no template that shows pictures.
        max_shard_bytes: of a file of weights; a larger tensor has a file of its own.

    Raises:
        ValueError: the folder is in use, or sizes and ids that transformers cannot express.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        what = "a model" if (folder / "config.json").exists() else "files"
        raise ValueError(f"{folder} holds {what} already; choose another folder or remove it")
    ids = special_ids(tokenizer_folder)
    dtypes = {name: dtype if isinstance(dtype, torch.dtype) else dtype(name) for name in hf_pieces(config)}
    described = hf_config(config, ids, common_dtype(config, dtypes.__getitem__))
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards(folder, config, read, dtypes, max_shard_bytes)
    copy_tokenizer(tokenizer_folder, folder, chat_template if config.vision else None)
    write_json(folder / "generation_config.json", generation_config(ids))
    if config.vision is not None:
        write_json(folder / "preprocessor_config.json", preprocessor_config(config.vision, min_pixels, max_pixels))
    # Last: a folder that was cut short has no config.json, so nothing loads it.
    write_json(folder / "config.json", described)
    return folder


def _shards(
    table: Mapping[str, tuple[Piece, ...]], dtypes: Mapping[str, torch.dtype], max_bytes: int
) -> tuple[list[list[str]], int]:
    """Canonical names of each shard in writing order, and the bytes of all."""
    shards: list[list[str]] = [[]]
    held = total = 0
    for name, pieces in table.items():
        size = math.prod(canonical_shape(pieces)) * dtypes[name].itemsize
        if held and held + size > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
        total += size
    return shards, total


def _write_shards(
    folder: Path,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    dtypes: Mapping[str, torch.dtype],
    max_bytes: int,
) -> None:
    table = hf_pieces(config)
    shards, total = _shards(table, dtypes, max_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(_write_shard(folder / file, names, table, read, dtypes), file)
    if len(shards) > 1:
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_shard(
    file: Path,
    names: Iterable[str],
    table: Mapping[str, tuple[Piece, ...]],
    read: Callable[[str], Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> list[str]:
    """Returns the names of the tensors in it. They die here: the next shard must not be made beside this one."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        whole = read(name)
        if tuple(whole.shape) != canonical_shape(table[name]):
            raise ValueError(f"{name} has shape {tuple(whole.shape)}, the model says {canonical_shape(table[name])}")
        tensors |= to_hf(table[name], whole.to(device="cpu", dtype=dtypes[name]))
        del whole
    save_file(tensors, file, metadata={"format": "pt"})
    return list(tensors)
