"""Packing a file of conversations and the folder of its pictures and clips into shards of our own format."""

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from data.encoding.encode import visual_parts
from data.errors import FormatError
from data.formats.conversations import FieldError, convert_record
from data.formats.shards import write_shards
from data.types import RawSample

REPORT = "pack_report.jsonl"
SAMPLES_PER_SHARD = 1000
_MAX_MEDIUM = 2**31  # bytes; a sample may have 4 GiB
_BLANK = b" \t\r\n\xef\xbb\xbf"  # with the mark of byte order that some editors write

Progress = Callable[[int, int], None]  # (records read, samples kept)


@dataclass(slots=True)
class Packed:
    """What came of packing."""

    records: int = 0
    samples: int = 0
    listed: int = 0
    """Lines of the report: samples that were left out, and fields of others."""


def pack(
    records: Path,
    media: Path,
    output: Path,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    progress: Progress | None = None,
) -> Packed:
    """Write `output/*.tar` from a JSON list or JSON lines of LLaVA, ShareGPT or Qwen `messages` records.

    Names of pictures and clips are looked up under `media` and must stay there. What does not map is listed in
    `output/pack_report.jsonl`, one line for each sample left out (`left_out`) and each field left behind. `output`
    appears when all is done. Raises ValueError for a file that is no JSON, and for an output folder that is in use.
    """
    folder, output = media.resolve(), output.absolute()
    if not folder.is_dir():
        raise ValueError(f"no folder {media}; --media is where the names of pictures and clips begin")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is in use; name a folder that is not there yet")
    if output.is_symlink() or output.is_mount():
        raise ValueError(f"{output} is a link or a mount point, which a folder cannot replace; name one in it")
    packed = Packed()
    with _unfinished(output) as unfinished:
        with open(unfinished / REPORT, "w", encoding="utf-8") as report:
            samples = _samples(records, folder, report, packed, progress)
            write_shards(unfinished, output.name, samples, samples_per_shard)
        if not packed.listed:
            (unfinished / REPORT).unlink()
        unfinished.replace(output)
    return packed


@contextlib.contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is gone afterwards, unless it was renamed. Raises ValueError if another has it."""
    folder = output.with_name(f".{output.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is packing into {output}; name another folder") from None
        try:
            for left in folder.iterdir():  # by one that was killed
                left.unlink()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def read_records(path: Path) -> Iterator[Any]:
    """Records of a JSON list, or of JSON lines; a line that is no JSON is a FieldError. Raises ValueError."""
    with open(path, "rb") as file:
        first = next((bytes([byte]) for line in file for byte in line if byte not in _BLANK), b"")
        file.seek(0)
        if first == b"[":
            yield from _load(file.read(), f"{path} begins as a JSON list but is none")
            return
        for number, line in enumerate(file, start=1):
            if line.strip(_BLANK):
                try:
                    yield _load(line, f"line {number} of {path.name} is no JSON")
                except ValueError as error:
                    yield FieldError("record", str(error))


def _load(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.strip(_BLANK).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {error}") from None


def _samples(
    records: Path, media: Path, report: IO[str], packed: Packed, progress: Progress | None
) -> Iterator[RawSample]:
    for number, record in enumerate(read_records(records)):
        name = record.get("id") if isinstance(record, dict) else None
        listed: list[tuple[str, str, bool]] = []
        try:
            sample, unmapped = _sample(number, record, media)
            listed = [(*each, False) for each in unmapped]
        except FieldError as error:
            sample, listed = None, [(error.field, error.reason, True)]
        for field_name, reason, left_out in listed:
            line = {"sample": number, "id": name, "field": field_name, "reason": reason, "left_out": left_out}
            report.write(json.dumps(line) + "\n")
        packed.records += 1
        packed.samples += sample is not None
        packed.listed += len(listed)
        if progress is not None:
            progress(packed.records, packed.samples)
        if sample is not None:
            yield sample


def _sample(number: int, record: Any, media: Path) -> tuple[RawSample, list[tuple[str, str]]]:
    if isinstance(record, FieldError):
        raise record
    found = convert_record(record)
    try:
        visual_parts(found.content)
        json.dumps(found.content, ensure_ascii=False).encode("utf-8")
    except FormatError as error:
        raise FieldError("record", str(error)) from None
    except UnicodeEncodeError as error:
        raise FieldError("record", f"half a surrogate pair is no character: {error}") from None
    members = {place: _read_medium(media, *each) for place, each in enumerate(found.media)}
    return RawSample(key=f"{number:08d}", content=found.content, media=members), found.unmapped


def _read_medium(folder: Path, kind: str, name: str) -> tuple[str, bytes]:
    """(extension, bytes) of a file in `folder`, which is resolved. Raises FieldError for whatever is none."""
    path = unquote(name.removeprefix("file://")) if name.startswith("file://") else name
    if path.startswith("data:") or "://" in path:
        raise FieldError(kind, f"{name[:80]!r} is no file; download it into the media folder first")
    try:
        found = (folder / path).resolve()
        if not found.is_relative_to(folder):
            raise FieldError(kind, f"{name[:200]!r} leads out of the media folder")
        about = found.stat()
        if not stat.S_ISREG(about.st_mode) or not 0 < about.st_size < _MAX_MEDIUM:
            raise FieldError(kind, f"{name[:200]!r} is no file of 1 to {_MAX_MEDIUM - 1} bytes")
        data = found.read_bytes()
    except FieldError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a name may hold zeros, or a circle of links
        raise FieldError(kind, f"{name[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    extension = found.suffix[1:].lower()
    return (extension if extension.isascii() and extension.isalnum() else "bin"), data
