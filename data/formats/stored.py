"""Formats in which a sample may lie in a tar: our own, and what webdataset's users write. Both are read in place."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import FormatError
from data.formats.conversations import CAPTIONS, TURNS, convert_record
from data.types import RawSample

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "flv", "wmv")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFormat:
    """How the members of a key become a sample."""

    version: int
    """Raise it with any change that reads other samples from the same bytes: indexes of older ones are refused."""
    read: Callable[[str, Mapping[str, bytes]], RawSample]
    """(key, bytes by what follows the key's dot) -> sample; raises FormatError"""


def read_ours(key: str, members: Mapping[str, bytes]) -> RawSample:
    """docs/data_format.md. Raises FormatError."""
    content = None
    media: dict[int, tuple[str, bytes]] = {}
    for suffix, payload in members.items():
        if suffix == "json":
            content = _parse_json(key, payload)
            continue
        number, _, extension = suffix.partition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 6 and extension):
            raise FormatError(f"member {key}.{suffix} is neither KEY.json nor KEY.<number>.<extension>")
        if int(number) in media:
            raise FormatError(f"sample {key} has two members with number {int(number)}")
        media[int(number)] = extension.lower(), payload
    if content is None:
        raise FormatError(f"sample {key} has no member {key}.json")
    if not isinstance(content, dict):
        raise FormatError(f"{key}.json must be an object, got {type(content).__name__}")
    return RawSample(key=key, content=content, media=media)


def read_webdataset(key: str, members: Mapping[str, bytes]) -> RawSample:
    """Pictures and clips by their extensions, text from .txt, .caption, .text or .json. Raises FormatError.

    Media are numbered in the order of their members. What stands for nothing is named in the content's `unmapped`.
    """
    record: dict[str, Any] = {}
    texts: dict[str, str] = {}
    media: list[tuple[str, str, bytes]] = []
    unmapped = []
    for suffix, payload in members.items():
        extension = suffix.lower().rpartition(".")[2]
        if extension in IMAGES or extension in VIDEOS:
            media.append(("image" if extension in IMAGES else "video", extension, payload))
        elif suffix.lower() == "json":
            found = _parse_json(key, payload)
            record = found if isinstance(found, dict) else {"caption": found}
        elif suffix.lower() in CAPTIONS:
            texts[suffix.lower()] = _decode(f"{key}.{suffix}", payload).strip()
        else:
            unmapped.append(f"member .{suffix}")
    if any(name in record for name in TURNS):
        unmapped += [f"member .{name}" for name in texts]
    elif texts:  # of a caption in the JSON as well, the member is what its writer set apart
        record = {name: value for name, value in record.items() if name not in CAPTIONS} | texts
    try:
        converted = convert_record(record, [kind for kind, _, _ in media])
    except FormatError as error:
        raise FormatError(f"sample {key}: {error}") from None
    unmapped += [f"{name}: {reason}" for name, reason in converted.unmapped]
    return RawSample(
        key=key,
        content=converted.content | ({"unmapped": unmapped} if unmapped else {}),
        media={number: (extension, payload) for number, (_, extension, payload) in enumerate(media)},
    )


OURS = "triptych"
FORMATS = {
    OURS: StoredFormat(version=1, read=read_ours),
    "webdataset": StoredFormat(version=1, read=read_webdataset),
}


def _decode(name: str, payload: bytes) -> str:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is not UTF-8: {error}") from None


def _parse_json(key: str, payload: bytes) -> Any:
    try:
        return json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{key}.json is not UTF-8 JSON: {error}") from None
