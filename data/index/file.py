"""The index of a folder of shards: what the planner knows without reading data. N samples, M visual parts.

Columns are .npy files, memory-mapped: shared between processes and read as far as needed. `index.json` names shards by
size and digest (never by time stamps, which copies change), and the tokenizer and template that counted the tokens.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data.encoding.encode import TEMPLATE_DIGEST
from data.encoding.tokenizer import Tokenizer
from data.errors import MismatchError, ShardFault
from data.formats.shards import parse_sample
from data.formats.stored import FORMATS
from data.store.config import OssConfig
from data.store.store import ShardStore, open_store
from data.types import MediaSize, RawSample

# Raise it also when other sizes are measured: 2 turns pictures as EXIF says and opens more formats. 3 knows the format
# of the shards and their etags, and leaves out samples with a member that no part shows.
VERSION = 3
RUN_BYTES = 32 << 20  # of one request
START_SHARDS, START_BYTES = 64, 256 << 20  # of a source, looked into at the start of a run
KINDS = ("image", "video")
_IDENTITY = ("version", "columns", "tokenizer", "template", "format", "format_version")
COLUMNS = {
    "shard": "<u4",  # (N,) number of the shard in index.json
    "offset": "<u8",  # (N,) first byte of the first tar header
    "nbytes": "<u4",  # (N,) headers and padding included
    "crc32c": "<u4",  # (N,) of those bytes
    "num_text_tokens": "<u4",  # (N,) all tokens but the visual ones
    "num_targets": "<u4",  # (N,) tokens to be predicted
    "media_end": "<u8",  # (N,) rows of the media_ columns up to and with this sample
    "media_kind": "<u1",  # (M,) number in KINDS
    "media_height": "<u4",  # (M,) pixels as stored
    "media_width": "<u4",
    "media_frames": "<u4",
    "media_fps": "<f8",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """A shard as it was when indexed; `digest` is blake2b-128 of its bytes."""

    name: str
    size: int
    digest: str
    etag: str | None = None
    """As the store told it; None of a local folder."""


class Index:
    """An opened index with the store its byte ranges point into."""

    def __init__(self, store: ShardStore, meta: dict[str, Any], columns: dict[str, NDArray]) -> None:
        self.store = store
        self.meta = meta
        self.columns = columns
        self.shards = [ShardInfo(**shard) for shard in meta["shards"]]
        # Of what a run is given, wherever it lies: no etags, nor how pictures were looked at.
        identity = [meta.get(name) for name in _IDENTITY] + [[s.name, s.size, s.digest] for s in self.shards]
        self.digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.refetched = 0
        """Samples whose bytes were wrong and were fetched again in this process."""

    def __len__(self) -> int:
        return len(self.columns["shard"])

    def media_range(self, i: int) -> tuple[int, int]:
        """First and past-the-last row of sample i in the media_ columns."""
        ends = self.columns["media_end"]
        return (int(ends[i - 1]) if i else 0), int(ends[i])

    def media_sizes(self, i: int) -> list[MediaSize]:
        """One for each visual part of sample i, in order of appearance: what `encode_sample` wants."""
        return [self.media_size(row) for row in range(*self.media_range(i))]

    def media_size(self, row: int) -> MediaSize:
        """One row of the media_ columns."""
        kind, height, width, frames, fps = (
            self.columns[f"media_{name}"][row].item() for name in ("kind", "height", "width", "frames", "fps")
        )
        return MediaSize(kind=KINDS[kind], height=height, width=width, frames=frames, fps=fps)  # type: ignore[arg-type]

    def where(self, i: int) -> str:
        """Shard and byte range of sample i, for messages and quarantine records."""
        offset, nbytes = int(self.columns["offset"][i]), int(self.columns["nbytes"][i])
        return f"{self.shards[self.columns['shard'][i]].name}[{offset}:{offset + nbytes}]"

    def read_bytes(self, i: int) -> bytes:
        """The stored bytes of sample i, checked. Fetched again once if wrong; then raises ShardFault."""
        shard = self.shards[self.columns["shard"][i]]
        offset, nbytes, expected = (int(self.columns[name][i]) for name in ("offset", "nbytes", "crc32c"))
        found = []
        for again in (False, True):
            self.refetched += again
            data = self.store.read_range(shard.name, offset, nbytes, shard.etag)
            if len(data) == nbytes and google_crc32c.value(data) == expected:
                return data
            found.append(
                f"{len(data)} bytes with CRC32C {google_crc32c.value(data):08x} from {self.store.where(shard.name)}"
            )
        raise ShardFault(
            f"{self.where(i)} was indexed as {nbytes} bytes with CRC32C {expected:08x}, but read as {found[0]}, "
            f"then {found[1]}; restore the shard, or index it again if it was meant to change"
        )

    def run_from(self, i: int, most: int) -> int:
        """How many samples from i on lie side by side in their shard, at most `most` and RUN_BYTES."""
        columns = self.columns
        count, nbytes = 1, int(columns["nbytes"][i])
        while count < most and i + count < len(self):
            last = i + count - 1
            beside = columns["offset"][last] + columns["nbytes"][last] == columns["offset"][last + 1]
            nbytes += int(columns["nbytes"][last + 1])
            if not beside or columns["shard"][last] != columns["shard"][last + 1] or nbytes > RUN_BYTES:
                break
            count += 1
        return count

    def read_run(self, i: int, count: int) -> list[RawSample]:
        """Samples from i on that `run_from` says lie side by side, parsed: one request for all of them."""
        ends = np.cumsum(self.columns["nbytes"][i : i + count], dtype=np.int64).tolist()
        shard = self.shards[self.columns["shard"][i]]
        data = self.store.read_range(shard.name, int(self.columns["offset"][i]), ends[-1], shard.etag)
        found = []
        for number, start, end in zip(range(i, i + count), [0, *ends], ends, strict=False):
            part = data[start:end]
            if google_crc32c.value(part) != self.columns["crc32c"][number]:
                self.refetched += 1
                part = self.read_bytes(number)  # fetches it again, and knows what to say
            found.append(parse_sample(part, self.meta["format"]))
        return found

    def read_raw(self, i: int) -> RawSample:
        """Sample i, parsed."""
        return parse_sample(self.read_bytes(i), self.meta["format"])

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse other tokens or changed shards; raises MismatchError that lists every difference.

        Of shards as large as before and without an etag, up to START_SHARDS are looked into: one sample of each.
        """
        wrong = []
        if self.meta["tokenizer"] != tokenizer.digest:
            wrong.append(f"its tokenizer has digest {self.meta['tokenizer']}, this one {tokenizer.digest}")
        if self.meta["template"] != TEMPLATE_DIGEST:
            wrong.append(f"its chat template has digest {self.meta['template']}, this code's {TEMPLATE_DIGEST}")
        name, version = self.meta["format"], self.meta["format_version"]
        known = {name: each.version for name, each in FORMATS.items()}
        if known.get(name) != version:
            wrong.append(f"it reads its shards as {name} {version}, this code knows {known}")
        wrong.extend(self.shard_faults() or self._changed_shards())
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            raise MismatchError(f"index does not fit: {shown}. Build it again with `triptych index`")

    def shard_faults(self) -> list[str]:
        """How the shards that are there differ from those that were indexed, as far as a listing tells."""
        wrong = []
        present = {stored.name: stored for stored in self.store.list(".tar")}
        for shard in self.shards:
            stored = present.get(shard.name)
            if stored is None:
                wrong.append(f"shard {shard.name} is gone")
            elif stored.size != shard.size:
                wrong.append(f"shard {shard.name} has {stored.size} bytes, was indexed with {shard.size}")
            elif shard.etag is not None and stored.etag is not None and stored.etag != shard.etag:
                wrong.append(f"shard {shard.name} has etag {stored.etag}, was indexed with {shard.etag}")
        known = {shard.name for shard in self.shards}
        wrong.extend(f"shard {name} is not in the index" for name in sorted(present.keys() - known))
        return wrong

    def _changed_shards(self) -> list[str]:
        """Shards without an etag whose last sample has another CRC32C; of many shards, some evenly among them.

        The last sample, because what is copied in part most often lacks its end.
        """
        of = self.columns["shard"]
        # In the column's own dtype: with another, numpy would copy the whole column.
        without = np.array([number for number, shard in enumerate(self.shards) if shard.etag is None], dtype=of.dtype)
        places = np.linspace(0, len(without) - 1, min(len(without), START_SHARDS)).astype(np.int64)
        numbers = without[places]
        wrong, left = [], START_BYTES
        for number, end in zip(numbers.tolist(), np.searchsorted(of, numbers, "right").tolist(), strict=True):
            last = end - 1
            if last < 0 or of[last] != number:
                continue  # no sample of it is used
            left -= int(self.columns["nbytes"][last])
            if left < 0:
                break
            try:
                self.read_bytes(last)
            except ShardFault as error:
                wrong.append(f"shard {self.shards[number].name} changed since it was indexed: {error}")
        return wrong


def index_folder(source: str | Path, index: str | Path | None = None) -> Path:
    """Where the index of a source lies: `index`, or `source/index`. Raises ValueError if it has to be said."""
    if index is not None:
        return Path(index)
    scheme, separator, _ = str(source).partition("://")
    if separator and scheme != "file":
        raise ValueError(
            f"{source}: an index is a local folder; name it, with `triptych index {source} --output FOLDER` and as "
            f"`index` of the source in the recipe"
        )
    return Path(str(source).removeprefix("file://")) / "index"


def open_index(
    source: str | Path, index: str | Path | None = None, oss: OssConfig | None = None, trusted: bool = False
) -> Index:
    """Open the index of `source` in the folder `index`, without which it is `source/index`.

    `trusted` columns are not digested (0.7 s for 10 million samples): another process has just done so.

    Raises MismatchError if it is absent, of another version, or damaged.
    """
    place = index_folder(source, index)
    again = f"`triptych index {source} --tokenizer FOLDER{f' --output {index}' if index is not None else ''}`"
    if not (place / "index.json").is_file():
        raise MismatchError(f"no index in {place}; build it with {again}")
    try:
        meta = json.loads((place / "index.json").read_text("utf-8"))
        version = meta["version"]
        digests = {name: meta["columns"][name] for name in COLUMNS} if version == VERSION else {}
    except (ValueError, KeyError, TypeError) as error:
        raise MismatchError(f"{place / 'index.json'} is damaged ({error}); build it again with {again}") from None
    if version != VERSION:
        raise MismatchError(f"{place} has version {version}, this code reads {VERSION}; build it again with {again}")
    columns = {}
    for name, dtype in COLUMNS.items():
        path = place / f"{name}.npy"
        if not path.is_file() or not (trusted or _digest_file(path) == digests[name]):
            raise MismatchError(f"{path} is missing or damaged; build the index again with {again}")
        columns[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        assert columns[name].dtype == np.dtype(dtype), (name, columns[name].dtype)
    return Index(open_store(source, oss), meta, columns)


def write_index(
    place: Path, meta: dict[str, Any], shards: Sequence[ShardInfo], columns: Mapping[str, Sequence | NDArray]
) -> None:
    """Write the files of an index into the folder `place`, index.json last.

    In between there is no index: a reader meets the old one, none or the new one, never a mixture; maps of the old
    files that are open stay what they are.
    """
    place.mkdir(parents=True, exist_ok=True)
    (place / "index.json").unlink(missing_ok=True)
    digests = {}
    for name, dtype in COLUMNS.items():
        unfinished = place / f"{name}.unfinished.npy"
        np.save(unfinished, np.asarray(columns[name], dtype=dtype), allow_pickle=False)
        digests[name] = _digest_file(unfinished)
        unfinished.replace(place / f"{name}.npy")
    full = {"version": VERSION, "shards": [asdict(shard) for shard in shards], "columns": digests, **meta}
    unfinished = place / "index.unfinished.json"
    unfinished.write_text(json.dumps(full, indent=1, sort_keys=True), "utf-8")
    unfinished.replace(place / "index.json")


def digest_chunks(read: Callable[[int, int], bytes], size: int) -> str:
    """blake2b-128 of an object read in chunks."""
    digest = hashlib.blake2b(digest_size=16)
    place = 0
    while place < size and (part := read(place, min(8 << 20, size - place))):
        digest.update(part)
        place += len(part)
    return digest.hexdigest()


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
