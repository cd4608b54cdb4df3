"""Decoded, resized frames on local disk, shared by ranks, epochs and runs.

Content-addressed, so nothing is ever out of date; a file that does not check is a miss and is removed. Raw bytes:
lz4 and zstd gained nothing on real frames. Reading 32 frames takes milliseconds where decoding takes a second.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import struct
import time
from pathlib import Path

import google_crc32c
import numpy as np

from data.types import Bytes, Int64

log = logging.getLogger(__name__)

MAGIC = b"TRIPCLIP"
HEADER_BYTES = 4096  # one page, so that the frames could be mapped
_FIELDS = struct.Struct("<8sI32sIIIQI")  # magic, version, key, frames, height, width, payload bytes, payload crc32c
_VERSION = 1
_LOW_WATER = 0.8
_STALE_SECONDS = 3600.0


def clip_key(data: bytes, indices: Int64, height: int, width: int, decoder: str) -> str:
    """Names the frames by all that decides them: the clip's bytes, which frames, their size, who decodes."""
    digest = hashlib.blake2b(data, digest_size=16)
    digest.update(repr((indices.tolist(), height, width, "bicubic", "rgb8", decoder)).encode())
    return digest.hexdigest()


class DecodeCache:
    """At most `max_bytes` in `folder`, which belongs to the cache alone; only its own files are ever removed."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._full = False
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("*/.*.tmp"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _STALE_SECONDS:
                    path.unlink()
        self._make_room(0)

    def get(self, key: str) -> Bytes | None:
        """uint8 (F, H, W, 3), or None. Anything wrong with the file is a miss."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)  # least recently used goes first
        except OSError:
            return None
        frames = _unpack(data, key)
        if frames is None:
            log.warning("decode cache: %s is damaged and was removed", path)
            path.unlink(missing_ok=True)
        return frames

    def put(self, key: str, frames: Bytes) -> None:
        """Store frames; a full or failing disk only costs the saving, never the run."""
        data = _pack(frames, key)
        if len(data) > self._max_bytes:
            return
        path = self._path(key)
        part = path.with_name(f".{key}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            if self._bytes + len(data) > self._max_bytes:
                self._make_room(len(data))
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(data)
            part.rename(path)
            self._bytes += len(data)
        except OSError as error:
            part.unlink(missing_ok=True)
            if not self._full:
                log.warning("decode cache: cannot write to %s (%s); going on without", self._folder, error)
            self._full = True

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.clip"

    def _make_room(self, wanted: int) -> None:
        """Count again (other processes write too); if above the bound, remove the oldest down to the low water."""
        with open(self._folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel if its owner dies
            files = []
            for path in self._folder.glob("*/*.clip"):
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, path))
            self._bytes = sum(size for _, size, _ in files)
            if self._bytes + wanted <= self._max_bytes:
                return
            for _, size, path in sorted(files):
                if self._bytes + wanted <= self._max_bytes * _LOW_WATER or not self._bytes:
                    break
                path.unlink(missing_ok=True)
                self._bytes -= size


def _pack(frames: Bytes, key: str) -> bytes:
    payload = np.ascontiguousarray(frames).tobytes()
    count, height, width, _ = frames.shape
    crc = google_crc32c.value(payload)
    fields = _FIELDS.pack(MAGIC, _VERSION, key.encode(), count, height, width, len(payload), crc)
    head = fields + struct.pack("<I", google_crc32c.value(fields))
    return head.ljust(HEADER_BYTES, b"\0") + payload


def _unpack(data: bytes, key: str) -> Bytes | None:
    if len(data) < HEADER_BYTES:
        return None
    fields = data[: _FIELDS.size]
    if struct.unpack_from("<I", data, _FIELDS.size)[0] != google_crc32c.value(fields):
        return None
    magic, version, found, count, height, width, nbytes, crc = _FIELDS.unpack(fields)
    payload = data[HEADER_BYTES:]
    if (magic, version, found) != (MAGIC, _VERSION, key.encode()) or len(payload) != nbytes:
        return None
    if nbytes != count * height * width * 3 or google_crc32c.value(payload) != crc:
        return None
    return np.frombuffer(payload, dtype=np.uint8).reshape(count, height, width, 3)
