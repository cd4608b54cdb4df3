"""One shard's part of an index: made by whoever has time, kept in a file of its own until all are there.

A part is reused only for the same shard (size and etag, or digest where the store has no etags) read in the same way,
so an index that was interrupted goes on where it stopped and comes out as if it had not been.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data.encoding.encode import TEMPLATE_DIGEST
from data.formats.shards import StoredSample
from data.formats.stored import FORMATS, OURS
from data.index.count import Count
from data.index.file import COLUMNS, KINDS, VERSION, ShardInfo
from data.store.config import OssConfig, oss_from_dict
from data.types import MediaSize, RawSample

_MOST_UNMAPPED = 100  # names come from the data, which may have any number of them
_DIGEST = 16  # bytes, at the head of a part
_LOCAL = tuple(name for name in COLUMNS if name != "shard")  # the shard's number is known when all parts are there


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSettings:
    """How shards are read; everything but `source`, `oss` and the folders decides what the index holds."""

    source: str
    parts: str
    """Folder of the parts."""
    tokenizer: str
    """Folder of the tokenizer."""
    tokenizer_digest: str
    format_name: str = OURS
    decode_pictures: bool = False
    skip_damaged: bool = False
    oss: OssConfig | None = None
    """How the source is reached, if it is at `oss://`."""

    def to_json(self) -> str:
        """For another process; it holds no secret."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "IndexSettings":
        """Inverse of `to_json`."""
        fields = json.loads(text)
        if (oss := fields.pop("oss")) is not None:
            oss = oss_from_dict(oss)
        return IndexSettings(**fields, oss=oss)

    @property
    def meta(self) -> dict[str, Any]:
        """What an index says of how it was made; a part of another way is not reused."""
        return {
            "version": VERSION,
            "tokenizer": self.tokenizer_digest,
            "template": TEMPLATE_DIGEST,
            "format": self.format_name,
            "format_version": FORMATS[self.format_name].version,
            "pictures": "decoded" if self.decode_pictures else "parsed",
        }

    def part_path(self, shard: str) -> Path:
        """Where the part of a shard lies; its name may hold anything, so it is no file name."""
        return Path(self.parts) / f"{hashlib.blake2b(shard.encode(), digest_size=16).hexdigest()}.part"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The index of one shard."""

    shard: ShardInfo
    columns: dict[str, NDArray]
    """As COLUMNS without `shard`; `media_end` counts from this shard's first visual part."""
    refused: list[dict[str, str]]
    damaged: str | None = None
    """Why the shard holds no samples, if it was skipped."""
    unmapped: dict[str, int]
    """What of its samples has no place in our form, and how often."""


class PartRows:
    """Grows the columns of one shard."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._lists: dict[str, list] = {name: [] for name in _LOCAL}
        self._keys: list[str] = []
        self._refused: list[dict[str, str]] = []
        self._torn: set[str] = set()
        self._unmapped: Counter[str] = Counter()

    def refuse(self, key: str, reason: str, torn: bool = False) -> None:
        """List a sample as left out; of a `torn` one the piece that was added before goes as well."""
        self._refused.append({"shard": self._shard, "key": key, "reason": reason})
        if torn:
            self._torn.add(key)

    def add(self, stored: StoredSample, raw: RawSample, sizes: Sequence[MediaSize], count: Count) -> None:
        """Take a sample in; `sizes` are those of its visual parts."""
        lists = self._lists
        for size in sizes:
            lists["media_kind"].append(KINDS.index(size.kind))
            lists["media_height"].append(size.height)
            lists["media_width"].append(size.width)
            lists["media_frames"].append(size.frames)
            lists["media_fps"].append(size.fps)
        lists["media_end"].append(len(sizes))
        lists["offset"].append(stored.offset)
        lists["nbytes"].append(len(stored.data))
        lists["crc32c"].append(google_crc32c.value(stored.data))
        lists["num_text_tokens"].append(count.text)
        lists["num_targets"].append(count.targets)
        self._keys.append(stored.key)
        if isinstance(unmapped := raw.content.get("unmapped"), list):
            self._unmapped.update(str(each)[:200] for each in unmapped)

    def part(self, shard: ShardInfo, damaged: str | None) -> Part:
        """All that was added, without the torn samples."""
        columns = {name: np.array(self._lists[name], dtype=COLUMNS[name]) for name in _LOCAL}
        if self._torn:
            kept = np.array([key not in self._torn for key in self._keys], dtype=bool)
            visual = np.repeat(kept, columns["media_end"].astype(np.int64))
            columns = {
                name: column[visual if name.startswith("media_") and name != "media_end" else kept]
                for name, column in columns.items()
            }
            self._refused += [
                {"shard": self._shard, "key": key, "reason": "the key comes back later in the shard"}
                for key in dict.fromkeys(key for key in self._keys if key in self._torn)
            ]
        columns["media_end"] = np.cumsum(columns["media_end"], dtype=COLUMNS["media_end"])
        return Part(
            shard=shard,
            columns=columns,
            refused=self._refused,
            damaged=damaged,
            unmapped=dict(self._unmapped.most_common(_MOST_UNMAPPED)),
        )


def save_part(settings: IndexSettings, part: Part) -> None:
    """Write a part so that it is there whole or not at all."""
    about = {
        "meta": settings.meta,
        "shard": asdict(part.shard),
        "refused": part.refused,
        "damaged": part.damaged,
        "unmapped": part.unmapped,
    }
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)} | part.columns
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    path = settings.part_path(part.shard.name)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(_digest(stream.getbuffer()) + stream.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load_part(settings: IndexSettings, shard: str) -> Part | None:
    """The part of a shard, or None if there is none that was made in this way and is whole."""
    path = settings.part_path(shard)
    whole = path.read_bytes() if path.is_file() else b""
    digest, payload = whole[:_DIGEST], whole[_DIGEST:]
    if not payload or digest != _digest(payload):
        return None
    with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(arrays.pop("about").tobytes())
    if about["meta"] != settings.meta or about["shard"]["name"] != shard:
        return None
    if about["damaged"] is not None and not settings.skip_damaged:
        return None
    return Part(
        shard=ShardInfo(**about["shard"]),
        columns=arrays,
        refused=about["refused"],
        damaged=about["damaged"],
        unmapped=about["unmapped"],
    )


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
