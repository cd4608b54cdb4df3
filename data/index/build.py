"""Building an index: every sample is parsed, tokenised and measured once, every clip decoded for a probe.

Each shard gives a part (part.py), made by readers (reader.py) in any order; the index is the parts in the
order of the shards. So it is the same bytes whoever made which part, and when.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError, MismatchError
from data.formats.stored import FORMATS, OURS
from data.index.file import COLUMNS, Index, index_folder, open_index, write_index
from data.index.part import IndexSettings, Part, load_part
from data.index.reader import make_parts
from data.index.shard import ShardIndexer
from data.store.config import OssConfig
from data.store.store import StoredObject, open_store

__all__ = ["Index", "Progress", "build_index", "open_index"]

Progress = Callable[[int, int, int], None]  # (shards done, shards, samples so far)


def build_index(
    source: str | Path,
    tokenizer: Tokenizer,
    progress: Progress | None = None,
    *,
    output: str | Path | None = None,
    readers: int = 0,
    format_name: str = OURS,
    decode_pictures: bool = False,
    skip_damaged: bool = False,
    oss: OssConfig | None = None,
) -> Index:
    """Index every `*.tar` of `source` and open what came of it. Goes on from the parts of an interrupted run.

    Args:
        output: folder of the index; None is `source/index`.
        readers: processes that read shards; 0 reads them in this one.
        format_name: one of FORMATS.
        decode_pictures: decode every picture instead of parsing its header alone.
        oss: how a `source` in object storage is reached.
        skip_damaged: list damaged shards under `damaged` in index.json, with none of their samples, instead of ending.

    Samples that break their format, or whose pictures or clips cannot be measured, are left out and listed under
    `refused` in index.json. Raises FormatError for a damaged shard, or if there is nothing to index, ValueError if
    the folder cannot be made.
    """
    if format_name not in FORMATS:
        raise ValueError(f"no format {format_name!r}; known are {', '.join(FORMATS)}")
    place = index_folder(source, output)
    shards = open_store(source, oss).list(".tar")
    if not shards:
        raise FormatError(f"no .tar shards in {source}")
    parts = place / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the index cannot be written to {place} ({error}); --output names another folder") from error
    settings = IndexSettings(
        source=str(source),
        parts=str(parts),
        tokenizer=str(tokenizer.folder),
        tokenizer_digest=tokenizer.digest,
        format_name=format_name,
        decode_pictures=decode_pictures,
        skip_damaged=skip_damaged,
        oss=oss,
    )
    samples = 0
    made = make_parts(settings, shards, readers) if readers else _make_here(settings, shards, tokenizer)
    for done, (_, count) in enumerate(made, start=1):
        samples += count
        if progress is not None:
            progress(done, len(shards), samples)
    _merge(place, settings, shards)
    shutil.rmtree(parts)
    return open_index(source, place, oss)


def _make_here(settings: IndexSettings, shards: Sequence[StoredObject], tokenizer: Tokenizer) -> Iterator:
    indexer = ShardIndexer(settings, tokenizer)
    try:
        for shard in shards:
            yield shard.name, indexer.make(shard)
    finally:
        indexer.close()


def _merge(place: Path, settings: IndexSettings, shards: Sequence[StoredObject]) -> None:
    """Lay the parts one after the other and write them as the index. The parts stay."""
    infos, refused, damaged = [], [], []
    unmapped: Counter[str] = Counter()
    columns: dict[str, list[NDArray]] = {name: [] for name in COLUMNS}
    media = 0
    for number, shard in enumerate(shards):
        part = _part(settings, shard.name)
        count = len(part.columns["offset"])
        infos.append(part.shard)
        refused += part.refused
        unmapped.update(part.unmapped)
        if part.damaged is not None:
            damaged.append({"shard": shard.name, "reason": part.damaged})
        for name, column in part.columns.items():
            columns[name].append(column + np.uint64(media) if name == "media_end" else column)
        columns["shard"].append(np.full(count, number, dtype=COLUMNS["shard"]))
        media += len(part.columns["media_kind"])
    whole = {name: np.concatenate(column) for name, column in columns.items()}
    if not len(whole["shard"]):
        told = f"the first refused: {told}" if (told := [*damaged, *refused][:3]) else "they are empty"
        raise FormatError(f"the {len(shards)} shards in {settings.source} hold no usable sample; {told}")
    meta: dict[str, Any] = settings.meta | {"refused": refused, "damaged": damaged, "unmapped": dict(unmapped)}
    write_index(place, meta, infos, whole)


def _part(settings: IndexSettings, shard: str) -> Part:
    part = load_part(settings, shard)
    if part is None:
        raise MismatchError(f"the part of shard {shard} has gone from {settings.parts}; does another run write there?")
    return part
