"""Tar shards: reading them without trusting them, and writing them with webdataset.

Member names are split into key, number and extension and used for nothing else, never as paths. webdataset's own
reader is not used: it ends a damaged shard early without an error.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import FormatError
from data.formats.stored import FORMATS, OURS
from data.store.store import ShardStore
from data.types import RawSample

if TYPE_CHECKING:
    import webdataset

BLOCK = 512
CHUNK = 4 << 20
_MAX_EXTENSION = 1 << 16  # bytes of a PAX or GNU long-name record; names are short
_SIZE_DIGITS = 20
_ZERO = bytes(BLOCK)
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file of a tar: `start` is where its first header begins, `end` where the next header would."""

    key: str
    suffix: str
    start: int
    data: int
    size: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSample:
    """Adjacent members of one key, as the byte range of a shard."""

    key: str
    offset: int
    data: bytes
    members: tuple[Member, ...]
    """With places counted from the start of the shard, as `offset` is."""
    again: bool = False
    """The key was there before, with other members in between: nobody knows what belongs together."""

    def parse(self, format_name: str = OURS) -> RawSample:
        """As `parse_sample(data, format_name)`, without parsing the headers once more. Raises FormatError."""
        return _read(self.members, self.data, self.offset, format_name)


def scan_shard(
    store: ShardStore, name: str, etag: str | None = None, watch: Callable[[bytes], object] | None = None
) -> Iterator[StoredSample]:
    """Every sample of a shard in order; each byte is fetched once, and shown to `watch` in order.

    Raises FormatError, with shard and byte, for a damaged or truncated tar.
    """
    size = store.size(name)
    seen: set[str] = set()
    group: list[Member] = []
    stream = _Stream(lambda offset, length: store.read_range(name, offset, length, etag), size, watch)
    try:
        for member in _members(stream.read, size):
            if group and member.key != group[0].key:
                yield _stored(group, stream, seen)
                group = []
            if not group:
                stream.forget(member.start)
            group.append(member)
        if group:
            yield _stored(group, stream, seen)
    except FormatError as error:
        raise FormatError(f"shard {name} ({size} bytes): {error}") from None


def parse_sample(data: bytes, format_name: str = OURS) -> RawSample:
    """The sample in a byte range that `scan_shard` gave, read by one of FORMATS. Raises FormatError."""
    members = _members(lambda offset, length: data[offset : offset + length], len(data), ranged=True)
    return _read(members, data, 0, format_name)


def write_shards(folder: str | Path, name: str, samples: Iterable[RawSample], samples_per_shard: int) -> list[Path]:
    """Write `folder/name-000000.tar` and so on; the same samples give the same bytes. Raises FormatError for a bad key.

    Each shard appears under its name only when complete. JSON keeps the order of its keys: a tool's schema is text that
    the model reads.
    """
    import webdataset  # which imports torch: two seconds that no reader of shards has to wait

    paths: list[Path] = []
    writer = None
    try:
        for number, sample in enumerate(samples):
            if number % samples_per_shard == 0:
                _finish(writer, paths)
                paths.append(Path(folder) / f"{name}-{len(paths):06d}.tar")
                paths[-1].parent.mkdir(parents=True, exist_ok=True)
                writer = webdataset.TarWriter(str(_unfinished(paths[-1])), encoder=False, mtime=0)
            if not sample.key or "." in sample.key.rpartition("/")[2]:
                raise FormatError(f"key {sample.key!r} must not be empty nor hold a dot: the first dot ends the key")
            members = {f"{number}.{extension}": data for number, (extension, data) in sample.media.items()}
            text = json.dumps(sample.content, ensure_ascii=False).encode("utf-8")
            assert writer is not None
            writer.write({"__key__": sample.key, "json": text, **members})
    except BaseException:
        if writer is not None:
            writer.close()
            _unfinished(paths[-1]).unlink()
        raise
    _finish(writer, paths)
    return paths


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _finish(writer: "webdataset.TarWriter | None", paths: list[Path]) -> None:
    if writer is not None:
        writer.close()
        _unfinished(paths[-1]).replace(paths[-1])


class _Stream:
    """A shard from its first byte to its last, in requests of at least CHUNK; holds what came since `forget`."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, watch: Callable[[bytes], object] | None) -> None:
        self._fetch = fetch
        self._size = size
        self._watch = watch
        self._at = 0  # of the first byte that is held
        self._held = b""
        self._keep = 0

    def forget(self, place: int) -> None:
        """Nothing before `place` will be read again."""
        self._keep = place

    def read(self, offset: int, length: int) -> bytes:
        """As of a store; `offset` lies behind what is forgotten."""
        end = min(offset + length, self._size)
        while (have := self._at + len(self._held)) < end:
            part = self._fetch(have, min(max(CHUNK, end - have), self._size - have))
            if not part:
                break
            if self._watch is not None:
                self._watch(part)
            old = self._held[max(0, self._keep - self._at) :]
            self._held, self._at = old + part, have - len(old)
        assert offset >= self._at, (offset, self._at)
        return self._held[offset - self._at : end - self._at]


def _read(members: Iterable[Member], data: bytes, offset: int, format_name: str) -> RawSample:
    """The sample whose members lie in `data`, which begins at `offset` of what their places count from."""
    key = ""
    found: dict[str, bytes] = {}
    for member in members:
        key = member.key
        if member.suffix in found:
            raise FormatError(f"sample {key} has two members {key}.{member.suffix}")
        found[member.suffix] = data[member.data - offset : member.data - offset + member.size]
    return FORMATS[format_name].read(key, found)


def _stored(group: list[Member], stream: _Stream, seen: set[str]) -> StoredSample:
    start, end, key = group[0].start, group[-1].end, group[0].key
    again = key in seen
    seen.add(key)
    data = stream.read(start, end - start)
    return StoredSample(key=key, offset=start, data=data, members=tuple(group), again=again)


def _members(read: Callable[[int, int], bytes], size: int, ranged: bool = False) -> Iterator[Member]:
    """Regular files of a tar; `ranged` bytes are whole members cut out of one, without the end-of-archive blocks."""
    place, start = 0, 0
    override: dict[str, str] = {}
    while not (ranged and place == size):
        block = read(place, BLOCK)
        if place == 0 and block.startswith(_GZIP):
            raise FormatError("is compressed; samples are read by ranges of a plain tar, so write it with `tar cf`")
        if len(block) < BLOCK:
            raise FormatError(f"ends at byte {size} without end-of-archive blocks: it is truncated; write it again")
        if block == _ZERO:
            _check_end(read, place, size)
            return
        name, length, kind = _parse_header(block, place)
        data = place + BLOCK
        length = int(override.get("size", length)) if kind == b"0" else length
        end = data + -(-length // BLOCK) * BLOCK
        if end > size:
            raise FormatError(f"member {name!r} at byte {place} needs {length} bytes, past the end: it is truncated")
        if kind in (b"x", b"L"):
            if length > _MAX_EXTENSION:
                raise FormatError(f"extension header of {length} bytes at byte {place}")
            override |= _parse_extension(kind, read(data, length), place)
        elif kind == b"0":
            directory, slash, base = override.get("path", name).rpartition("/")
            stem, _, suffix = base.partition(".")
            yield Member(key=directory + slash + stem, suffix=suffix, start=start, data=data, size=length, end=end)
        elif kind not in (b"g", b"5"):
            raise FormatError(f"member {name!r} at byte {place} has type {kind!r}; only regular files are allowed")
        place = end
        if kind not in (b"x", b"L"):
            start, override = end, {}


def _parse_header(block: bytes, place: int) -> tuple[str, int, bytes]:
    """(name, size, type) of a 512-byte header; raises FormatError if its checksum does not hold."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"0", 8)
        found = sum(block) - sum(block[148:156]) + 8 * 32
        if block[124] & 0x80:
            size = int.from_bytes(block[125:136], "big")
        else:
            size = int(block[124:136].strip(b" \0") or b"0", 8)
        name = block[:100].rstrip(b"\0").decode("utf-8")
        if block[257:263] == b"ustar\0" and (prefix := block[345:500].rstrip(b"\0").decode("utf-8")):
            name = f"{prefix}/{name}"
    except ValueError as error:
        raise FormatError(f"no tar header at byte {place}: {error}") from None
    if stated != found or size < 0:
        raise FormatError(f"the tar header at byte {place} is damaged (checksum {found}, it says {stated})")
    kind = block[156:157]
    return name, size, b"0" if kind in (b"\0", b"7") else kind


def _parse_extension(kind: bytes, payload: bytes, place: int) -> dict[str, str]:
    """`path` and `size` of a PAX record, or the GNU long name; other keys do not matter here."""
    try:
        if kind == b"L":
            return {"path": payload.rstrip(b"\0").decode("utf-8")}
        found = {}
        while payload:
            length = int(payload.split(b" ", 1)[0])
            if not 0 < length <= len(payload):
                raise ValueError(f"record of {length} bytes")
            key, _, value = payload[:length].split(b" ", 1)[1].rstrip(b"\n").decode("utf-8").partition("=")
            if key == "size" and not (value.isascii() and value.isdigit() and len(value) < _SIZE_DIGITS):
                raise ValueError(f"a size of {len(value)} characters that is no number of bytes")
            if key in ("path", "size"):
                found[key] = value
            payload = payload[length:]
        return found
    except (ValueError, IndexError) as error:
        raise FormatError(f"damaged extension header at byte {place}: {error}") from None


def _check_end(read: Callable[[int, int], bytes], place: int, size: int) -> None:
    """Zeroed blocks in the middle would otherwise hide the rest of a shard."""
    if size - place < 2 * BLOCK:
        raise FormatError(f"ends with one zero block at byte {place} where two are due: it is truncated")
    while place < size:
        part = read(place, min(CHUNK, size - place))
        if part.count(0) != len(part) or not part:
            raise FormatError(f"zero blocks at byte {place} are followed by data: it is damaged")
        place += len(part)
