"""A file of the decode cache: a page of header, then raw uint8 frames.

The header says what the frames are and their CRC, and has a CRC of its own. Behind it lie marks, one a run, that say
when the run needs the frames again: hints, overwritten in place, each with its own CRC, and outside that of the header.
"""

import hashlib
import os
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from data.types import Bytes

MAGIC = b"TRIPCLIP"
HEADER_BYTES = 4096
VERSION = 2
# magic, version, key, decoder, frames, height, width, payload bytes, payload crc32c
_FIELDS = struct.Struct("<8sI32s96sIIIQI")
_MARK = struct.Struct("<8sqqd")  # run, step, next step, wall clock
_MARKS_AT, _NUM_MARKS, _MARK_BYTES = 1024, 8, _MARK.size + 4
NEVER = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A read that the plan knew of, and the next one of the same frames."""

    run: str
    """Any name that the processes of a run share and other runs do not have."""
    step: int
    next_step: int | None
    """None: the plan does not read them again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A `Use` as stored."""

    run: bytes  # 8 bytes that stand for its name
    step: int
    next_step: int  # or NEVER
    clock: float  # seconds since the epoch


def open_own(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor if the file is one of the cache's: regular, no link, with our magic or never written (all zeros).

    The latter is what a power cut leaves of a file that was renamed before its bytes reached the disk.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        own = stat.S_ISREG(os.fstat(descriptor).st_mode)
        own = own and os.pread(descriptor, len(MAGIC), 0) in (MAGIC, bytes(len(MAGIC)), b"")
    except OSError:
        own = False
    if not own:
        os.close(descriptor)
        return None
    return descriptor


def pack_header(key: str, frames: Bytes, decoder: str) -> bytes:
    """The first page of the file of C-contiguous `frames` (F, H, W, 3)."""
    count, height, width, _ = frames.shape
    crc = google_crc32c.value(frames)
    fields = _FIELDS.pack(MAGIC, VERSION, key.encode(), decoder.encode()[:96], count, height, width, frames.nbytes, crc)
    return (fields + struct.pack("<I", google_crc32c.value(fields))).ljust(HEADER_BYTES, b"\0")


def read_frames(descriptor: int, key: str) -> Bytes | None:
    """(F, H, W, 3), or None if anything about the file is wrong.

    Read, not mapped: the bytes checked are the bytes given, and a file cut short under a map would kill the reader.
    """
    head = os.pread(descriptor, HEADER_BYTES, 0)
    if len(head) < HEADER_BYTES or struct.unpack_from("<I", head, _FIELDS.size)[0] != google_crc32c.value(
        head[: _FIELDS.size]
    ):
        return None
    magic, version, found, _, count, height, width, nbytes, crc = _FIELDS.unpack_from(head)
    if (magic, version, found) != (MAGIC, VERSION, key.encode()) or nbytes != count * height * width * 3:
        return None
    if os.fstat(descriptor).st_size != HEADER_BYTES + nbytes:
        return None
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    view, place = frames.reshape(-1).data, 0
    while place < nbytes:
        taken = os.preadv(descriptor, [view[place:]], HEADER_BYTES + place)
        if not taken:
            return None
        place += taken
    return frames if google_crc32c.value(frames) == crc else None


def write_mark(descriptor: int, use: Use) -> None:
    """Put the run's mark in its place, or in an empty one, or in that of the run not heard of for longest."""
    run = run_bytes(use.run)
    places = _marks(os.pread(descriptor, _NUM_MARKS * _MARK_BYTES, _MARKS_AT))
    own = [place for place, mark in enumerate(places) if mark is not None and mark.run == run]
    oldest = min(range(_NUM_MARKS), key=lambda place: mark.clock if (mark := places[place]) is not None else 0.0)
    place = own[0] if own else oldest
    fields = _MARK.pack(run, use.step, NEVER if use.next_step is None else use.next_step, time.time())
    crc = struct.pack("<I", google_crc32c.value(fields))
    os.pwrite(descriptor, fields + crc, _MARKS_AT + place * _MARK_BYTES)


def read_marks(descriptor: int) -> list[Mark]:
    """Marks that check, of any run."""
    return [mark for mark in _marks(os.pread(descriptor, _NUM_MARKS * _MARK_BYTES, _MARKS_AT)) if mark is not None]


def run_bytes(run: str) -> bytes:
    """8 bytes for a run's name."""
    return hashlib.blake2b(run.encode(), digest_size=8).digest()


def _marks(data: bytes) -> list[Mark | None]:
    found: list[Mark | None] = []
    for place in range(_NUM_MARKS):
        part = data[place * _MARK_BYTES : (place + 1) * _MARK_BYTES]
        if len(part) < _MARK_BYTES or struct.unpack_from("<I", part, _MARK.size)[0] != google_crc32c.value(
            part[: _MARK.size]
        ):
            found.append(None)
            continue
        run, step, next_step, clock = _MARK.unpack_from(part)
        found.append(Mark(run=run, step=step, next_step=next_step, clock=clock))
    return found
