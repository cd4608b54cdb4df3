"""Decoded, resized frames on local disk, shared by ranks, epochs and runs.

Content-addressed, so nothing is ever out of date; a file that does not check is a miss and is removed. Raw bytes:
lz4 and zstd gained nothing on real frames. Reading 32 frames takes milliseconds where decoding takes a second.

Files are renamed into place without fsync. After a power cut some are empty or have holes: their CRCs do not check,
they are removed on the first read, and the frames are decoded again.
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.types import Bytes
from data.visual.cache_file import HEADER_BYTES, NEVER, Use, open_own, pack_header, read_frames, write_mark
from data.visual.cache_room import Room, lock_within, unlock

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class CacheCounters:
    """What one process saw; sums over processes are meaningful. Bytes include headers."""

    hits: int = 0
    misses: int = 0
    read_bytes: int = 0
    stored: int = 0
    stored_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    bypassed: int = 0
    """Frames decoded and not stored: too large, needed too late, no room, or a disk that fails."""
    damaged: int = 0
    waits: int = 0
    """Reads that waited for another process to decode the same frames."""
    wait_seconds: float = 0.0
    gave_up: int = 0
    """Of these, waits that passed their deadline; the frames were then decoded here too."""

    def __add__(self, other: "CacheCounters") -> "CacheCounters":
        return CacheCounters(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


def frame_key(request: str, decoder: str) -> str:
    """32 hex digits for all that decides the frames: `ClipRequest.digest`, and who decodes."""
    return hashlib.blake2b(f"{request} {decoder}".encode(), digest_size=16).hexdigest()


class DecodeCache:
    """At most `max_bytes` of frames in `folder`, for any number of processes; only its own files are ever removed."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self._folder = Path(folder).resolve()
        self._room = Room(self._folder, max_bytes)
        self._warned = False
        self.counters = CacheCounters()
        with self._bypass():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._room.sweep()
        self._count_evicted()

    @property
    def verdicts(self) -> Path:
        """Folder for what cannot be decoded."""
        return self._folder / "verdicts"

    def get(self, key: str, use: Use | None = None) -> Bytes | None:
        """uint8 (F, H, W, 3), or None. Anything wrong with the file is a miss."""
        path = self._path(key)
        if path.parent.is_symlink():
            return None
        descriptor = open_own(path, os.O_RDWR)
        if descriptor is None:
            descriptor = open_own(path)  # another user's
        if descriptor is None:
            return None
        try:
            frames = read_frames(descriptor, key)
            if frames is None:
                self.counters.damaged += 1
                log.warning("decode cache: %s is damaged and was removed", path)
                path.unlink(missing_ok=True)
                return None
            self.counters.hits += 1
            self.counters.read_bytes += HEADER_BYTES + frames.nbytes
            with contextlib.suppress(OSError):
                _touch(descriptor, use)
            return frames
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def put(self, key: str, frames: Bytes, decoder: str, use: Use | None = None) -> None:
        """Store frames; a full or failing disk only costs the saving, never the run.

        Args:
            frames: uint8 (F, H, W, 3).
            decoder: name of who decoded them.
            use: when the plan needs them again; without it, what was not read for longest goes first.
        """
        self.counters.misses += 1
        frames = np.ascontiguousarray(frames)
        path = self._path(key)
        ahead = None
        if use is not None:
            ahead = NEVER if use.next_step is None else use.next_step - use.step
        stored = False
        with self._bypass():
            if path.is_symlink() or path.exists():  # another was faster, or it is not ours
                return
            with self._room.reserve(key, HEADER_BYTES + frames.nbytes, ahead) as reserved:
                if reserved is not None:
                    descriptor, part = reserved
                    _write(descriptor, pack_header(key, frames, decoder), 0)
                    _write(descriptor, frames.reshape(-1).data, HEADER_BYTES)
                    _touch(descriptor, use)
                    stored = self._room.publish(part, path)
        self._count_evicted()
        self.counters.stored += stored
        self.counters.stored_bytes += stored * (HEADER_BYTES + frames.nbytes)
        self.counters.bypassed += not stored

    @contextlib.contextmanager
    def flight(self, request: str, seconds: float) -> Iterator[bool]:
        """Hold the right to decode what `request` names; whether another held it before, who may have stored it.

        A dead holder loses it at once, one that hangs after `seconds`. 4096 files stand for all requests: two different
        ones seldom meet in one, and then only wait.
        """
        descriptor = None
        waited = False
        try:
            with self._bypass():
                (self._folder / "flight").mkdir(exist_ok=True)
                descriptor = os.open(
                    self._folder / "flight" / request[:3], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
                )
                if not lock_within(descriptor, 0.0):
                    waited = True
                    started = time.monotonic()
                    self.counters.waits += 1
                    self.counters.gave_up += not lock_within(descriptor, seconds)
                    self.counters.wait_seconds += time.monotonic() - started
            yield waited
        finally:
            if descriptor is not None:
                unlock(descriptor)

    @contextlib.contextmanager
    def _bypass(self) -> Iterator[None]:
        """A disk's failure is told once and costs nothing else."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                log.warning("decode cache: cannot write to %s (%s); going on without", self._folder, error)
            self._warned = True

    def _count_evicted(self) -> None:
        self.counters.evicted, self.counters.evicted_bytes = self._room.evicted, self._room.evicted_bytes

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.clip"


def _touch(descriptor: int, use: Use | None) -> None:
    if use is not None:
        write_mark(descriptor, use)
    os.utime(descriptor)


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]
