"""Shards, tokenizers and the like that are not those of an index, and whether that is noticed."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.encoding.tokenizer import load_tokenizer
from data.errors import MismatchError
from data.formats.stored import FORMATS, OURS
from data.index import file as index_file
from data.index.build import Index, build_index, open_index
from data.index.check import compare_with_shards
from data.store.store import LocalStore
from tests.data.conftest import train_tokenizer
from tests.harness.index_sources import make_source, replaced


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _zero_end(path: Path) -> None:
    """What a copy leaves that broke off after its room was taken; a tar ends in 1024 zeros or more anyway."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def unnoticed(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(at the start of a run, by `--check`): 1 for each difference that was not named."""
    make_source(folder, shards=3, samples_per_shard=4)
    whole = folder / "source"
    tokenizer = load_tokenizer(folder / "tokenizer")
    other = train_tokenizer(folder / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    listed: dict[str, tuple[Callable[[Path], object], str]] = {
        "a shard shorter": (lambda f: os.truncate(f / "s-000001.tar", 2048), "s-000001.tar has 2048 bytes"),
        "a shard longer": (lambda f: (f / "s-000001.tar").open("ab").write(bytes(512)), "s-000001.tar has"),
        "a shard gone": (lambda f: (f / "s-000001.tar").unlink(), "s-000001.tar is gone"),
        "a shard written anew in the same size": (
            lambda f: (f / "s-000001.tar").write_bytes((f / "s-000002.tar").read_bytes()),
            "shard s-000001.tar",
        ),
        "the end of a shard zeroed": (lambda f: _zero_end(f / "s-000001.tar"), "shard s-000001.tar"),
        "a new shard": (lambda f: shutil.copy(f / "s-000001.tar", f / "t.tar"), "t.tar is not in the index"),
    }
    build_index(whole, tokenizer)
    start, full = {}, {}
    for name, (change, words) in listed.items():
        copy = _copy(whole, folder)
        change(copy)
        start[name] = words not in _start_says(open_index(copy), tokenizer)
        full[name] = not any(words in fault for fault in compare_with_shards(open_index(copy), 2))
    index = open_index(whole)
    start["another tokenizer"] = "tokenizer has digest" not in _start_says(index, load_tokenizer(other))
    with replaced(index_file, "TEMPLATE_DIGEST", "another"):
        start["another template"] = "template has digest" not in _start_says(index, tokenizer)
    with replaced(FORMATS, OURS, replace(FORMATS[OURS], version=2)):
        start["another version of the format"] = "reads its shards as" not in _start_says(index, tokenizer)
    start["another etag"], full["another etag"] = _etag_unnoticed(folder, whole, tokenizer)
    for i in range(len(index)):  # a bit of each sample in turn
        copy = _copy(whole, folder)
        _flip(copy / index.shards[index.columns["shard"][i]].name, int(index.columns["offset"][i]) + 700)
        told = compare_with_shards(open_index(copy), 2)
        full["a flipped bit in a sample"] = full.get("a flipped bit in a sample", 0) + (
            sum(fault.startswith(f"sample {i} at") for fault in told) != 1 or len(told) != 2
        )
    copy = _copy(whole, folder)
    _flip(copy / "s-000002.tar", -1)
    full["a flipped bit behind the samples"] = not any(
        fault.startswith("shard s-000002.tar has digest") for fault in compare_with_shards(open_index(copy), 2)
    )
    full["another CRC in the index"] = _crc_unnoticed(_copy(whole, folder))
    return {k: int(v) for k, v in start.items()}, {k: int(v) for k, v in full.items()}


def _copy(whole: Path, folder: Path) -> Path:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    return copy


def _start_says(index: Index, tokenizer: Any) -> str:
    try:
        index.check(tokenizer)
    except MismatchError as error:
        return str(error)
    return ""


def _etag_unnoticed(folder: Path, whole: Path, tokenizer: Any) -> tuple[bool, bool]:
    listed, etag = LocalStore.list, ["one"]
    told = lambda self, suffix: [replace(each, etag=etag[0]) for each in listed(self, suffix)]  # noqa: E731
    with replaced(LocalStore, "list", told):
        index = build_index(_copy(whole, folder), tokenizer)
        etag[0] = "two"
        words = "has etag two, was indexed with one"
        return words not in _start_says(index, tokenizer), words not in "".join(compare_with_shards(index, 1))


def _crc_unnoticed(copy: Path) -> bool:
    """A column that is whole by its own digest, with one number that is not the shard's."""
    index = open_index(copy)
    columns = {name: np.array(column) for name, column in index.columns.items()}
    columns["crc32c"][5] ^= 1
    meta = {name: value for name, value in index.meta.items() if name not in ("version", "shards", "columns")}
    index_file.write_index(copy / "index", meta, index.shards, columns)
    return not any(fault.startswith("sample 5 at") for fault in compare_with_shards(open_index(copy), 1))
