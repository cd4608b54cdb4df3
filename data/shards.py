"""Tar shards: reading them without trusting them, and writing them with webdataset.

Member names are split into key, number and extension and used for nothing else, never as paths. webdataset's own
reader is not used: it ends a damaged shard early without an error.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import webdataset

from data.errors import FormatError
from data.store import ShardStore
from data.types import RawSample

BLOCK = 512
CHUNK = 4 << 20
_MAX_EXTENSION = 1 << 16  # bytes of a PAX or GNU long-name record; names are short
_ZERO = bytes(BLOCK)


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


def scan_shard(store: ShardStore, name: str) -> Iterator[StoredSample]:
    """Every sample of a shard in order. Raises FormatError for a damaged or truncated tar, or a key that comes back."""
    size = store.size(name)
    seen: set[str] = set()
    group: list[Member] = []
    read = _buffered(store, name, size)
    try:
        for member in _members(read, size):
            if group and member.key != group[0].key:
                yield _stored(group, read)
                group = []
            if not group:
                if member.key in seen:
                    raise FormatError(
                        f"key {member.key!r} comes back at byte {member.start}; keep its members adjacent"
                    )
                seen.add(member.key)
            group.append(member)
        if group:
            yield _stored(group, read)
    except FormatError as error:
        raise FormatError(f"shard {name} ({size} bytes): {error}") from None


def parse_sample(data: bytes) -> RawSample:
    """The members in one sample's byte range. Raises FormatError."""
    content = None
    media: dict[int, tuple[str, bytes]] = {}
    key = ""
    for member in _members(lambda offset, length: data[offset : offset + length], len(data), ranged=True):
        key = member.key
        payload = data[member.data : member.data + member.size]
        if member.suffix == "json":
            content = _parse_json(key, payload)
            continue
        number, _, extension = member.suffix.partition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 6 and extension):
            raise FormatError(f"member {key}.{member.suffix} is neither KEY.json nor KEY.<number>.<extension>")
        if int(number) in media:
            raise FormatError(f"sample {key} has two members with number {int(number)}")
        media[int(number)] = extension.lower(), payload
    if content is None:
        raise FormatError(f"sample {key} has no member {key}.json")
    return RawSample(key=key, content=content, media=media)


def write_shards(folder: str | Path, name: str, samples: Iterable[RawSample], samples_per_shard: int) -> list[Path]:
    """Write `folder/name-000000.tar` and so on; the same samples give the same bytes. Raises FormatError for a bad key.

    Each shard appears under its name only when complete. JSON keeps the order of its keys: a tool's schema is text that
    the model reads.
    """
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


def _parse_json(key: str, payload: bytes) -> dict:
    try:
        content = json.loads(payload.decode("utf-8"))
    except ValueError as error:
        raise FormatError(f"{key}.json is not UTF-8 JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{key}.json must be an object, got {type(content).__name__}")
    return content


def _stored(group: list[Member], read: Callable[[int, int], bytes]) -> StoredSample:
    start, end = group[0].start, group[-1].end
    return StoredSample(key=group[0].key, offset=start, data=read(start, end - start))


def _buffered(store: ShardStore, name: str, size: int) -> Callable[[int, int], bytes]:
    """Reads served from one window, since headers are 512 bytes and a request may be a network round trip."""
    window = b""
    at = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal window, at
        if not at <= offset <= offset + length <= at + len(window):
            at, window = offset, store.read_range(name, offset, min(max(length, CHUNK), size - offset))
        return window[offset - at : offset - at + length]

    return read


def _members(read: Callable[[int, int], bytes], size: int, ranged: bool = False) -> Iterator[Member]:
    """Regular files of a tar; `ranged` bytes are whole members cut out of one, without the end-of-archive blocks."""
    place, start = 0, 0
    override: dict[str, str] = {}
    while not (ranged and place == size):
        block = read(place, BLOCK)
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
            if key == "path" or (key == "size" and value.isascii() and value.isdigit()):
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
