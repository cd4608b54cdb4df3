"""Building an index: every sample is parsed, tokenised and measured once, every clip decoded for a probe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

from data.decode import ClipDecoder
from data.encode import TEMPLATE_DIGEST, count_text_tokens, visual_parts
from data.errors import FormatError, SampleError
from data.images import MAX_ASPECT
from data.index_file import COLUMNS, KINDS, Index, ShardInfo, digest_chunks, open_index, write_index
from data.pictures import image_size
from data.shards import StoredSample, parse_sample, scan_shard
from data.store import LocalStore, ShardStore, open_store
from data.tokenizer import Tokenizer
from data.types import MediaSize, RawSample

__all__ = ["Index", "Progress", "build_index", "measure", "open_index"]

Progress = Callable[[int, int, int], None]  # (shards done, shards, samples so far)
PROBE_SECONDS = 60.0
_MAX_SAMPLE = 2**32 - 1


def build_index(folder: str | Path, tokenizer: Tokenizer, progress: Progress | None = None) -> Index:
    """Index every `*.tar` in `folder` into `folder/index/` and open it.

    Samples whose pictures or clips cannot be measured are left out and listed under `refused` in index.json. Raises
    FormatError for anything else that breaks docs/data_format.md, with shard and key.
    """
    store = open_store(folder)
    names = [stored.name for stored in store.list(".tar")]
    if not names:
        raise FormatError(f"no .tar shards in {folder}")
    columns = _Columns(tokenizer=tokenizer)
    shards = []
    try:
        for number, name in enumerate(names):
            for sample in scan_shard(store, name):
                columns.add(number, name, sample)
            shards.append(_describe(store, name))
            if progress is not None:
                progress(number + 1, len(names), len(columns.lists["shard"]))
    finally:
        columns.decoder.close()
    if not columns.lists["shard"]:
        raise FormatError(f"the {len(names)} shards in {folder} hold no usable sample; refused: {columns.refused[:3]}")
    assert isinstance(store, LocalStore)
    meta = {"tokenizer": tokenizer.digest, "template": TEMPLATE_DIGEST, "refused": columns.refused}
    write_index(store.folder, meta, shards, columns.lists)
    return open_index(folder)


@dataclass(slots=True)
class _Columns:
    tokenizer: Tokenizer
    decoder: ClipDecoder = field(default_factory=lambda: ClipDecoder(PROBE_SECONDS))
    lists: dict[str, list] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    refused: list[dict[str, str]] = field(default_factory=list)

    def add(self, number: int, shard: str, stored: StoredSample) -> None:
        try:
            if len(stored.data) > _MAX_SAMPLE:
                raise FormatError(f"sample of {len(stored.data)} bytes; the most is {_MAX_SAMPLE}")
            raw = parse_sample(stored.data)
            sizes = measure(raw, self.decoder)
            num_text_tokens = count_text_tokens(raw.content, self.tokenizer)
        except SampleError as error:
            self.refused.append({"shard": shard, "key": stored.key, "reason": str(error)})
            return
        except FormatError as error:
            raise FormatError(f"shard {shard}, sample {stored.key}: {error}") from None
        lists = self.lists
        for size in sizes:
            lists["media_kind"].append(KINDS.index(size.kind))
            lists["media_height"].append(size.height)
            lists["media_width"].append(size.width)
            lists["media_frames"].append(size.frames)
            lists["media_fps"].append(size.fps)
        lists["media_end"].append(len(lists["media_kind"]))
        lists["shard"].append(number)
        lists["offset"].append(stored.offset)
        lists["nbytes"].append(len(stored.data))
        lists["crc32c"].append(google_crc32c.value(stored.data))
        lists["num_text_tokens"].append(num_text_tokens)


def measure(raw: RawSample, decoder: ClipDecoder) -> list[MediaSize]:
    """The size of each visual part, in order of appearance; raises SampleError or FormatError."""
    sizes = []
    for kind, number in visual_parts(raw.content):
        if number not in raw.media:
            raise FormatError(f"part {kind} wants member {number}, there are {sorted(raw.media)}")
        try:
            sizes.append(_measure_one(kind, raw.media[number][1], decoder))
        except SampleError as error:
            raise SampleError(f"sample {raw.key}, member {number}: {error}") from error
    return sizes


def _measure_one(kind: str, data: bytes, decoder: ClipDecoder) -> MediaSize:
    if kind == "image":
        height, width = image_size(data)
        size = MediaSize(kind="image", height=height, width=width)
    else:
        size = decoder.probe(data)
        if size.frames < 1 or not size.fps > 0:
            raise SampleError(f"clip with {size.frames} frames at {size.fps} frames per second")
    if max(size.height, size.width) > MAX_ASPECT * min(size.height, size.width):
        raise SampleError(f"{kind} of {size.height}x{size.width} pixels: aspect ratio above {MAX_ASPECT}")
    return size


def _describe(store: ShardStore, name: str) -> ShardInfo:
    size = store.size(name)
    digest = digest_chunks(lambda offset, length: store.read_range(name, offset, length), size)
    return ShardInfo(name=name, size=size, digest=digest)
