"""All that a checkpoint does to a disk. Each call is a place where a process may die, a disk may be full, or hang."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
_BLOCK = 1 << 24
"""Bytes written or read at a time: between two a thread of the same process gets its turn."""
_SYNCED = 1 << 30
"""Bytes of a file that wait for the disk at most: no thread can be called back from the wait for all of a large one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Digest:
    """What a file held when it was written, or holds now."""

    size: int
    crc32c: str


def make_folder(path: Path) -> None:
    """Make a folder that was not there, and wait until the disk has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    sync_folder(path.parent)


def write(path: Path, pieces: Iterable[bytes | Bytes], between: Callable[[], object] = lambda: None) -> Digest:
    """Write a file that was not there, and wait until the disk has it. Arrays are uint8, 1-D.

    The checksum is of the bytes that were given, so a disk that keeps others is found out. `between` is called before
    each block and once all are there; what it raises ends the writing.
    """
    checksum, size, waiting = google_crc32c.Checksum(), 0, 0
    with path.open("xb", buffering=0) as file:
        for piece in pieces:
            whole = np.frombuffer(piece, dtype=np.uint8) if isinstance(piece, bytes) else piece
            for start in range(0, len(whole), _BLOCK):
                between()
                block = whole[start : start + _BLOCK]
                checksum.update(block)
                write_block(file.fileno(), block)
                waiting += len(block)
                if waiting >= _SYNCED:
                    sync(file.fileno())
                    waiting = 0
            size += len(whole)
        between()
        sync(file.fileno())
    return Digest(size=size, crc32c=checksum.hexdigest().decode("ascii"))


def write_block(descriptor: int, block: Bytes) -> None:
    """All of a block: the kernel may take less of it at a time."""
    while len(block):
        block = block[os.write(descriptor, block.data) :]


def sync(descriptor: int) -> None:
    """Wait until the disk has a file's bytes."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder, which fsync of the files does not promise."""
    number = os.open(path, os.O_RDONLY)
    try:
        sync(number)
    finally:
        os.close(number)


def rename(path: Path, to: Path) -> None:
    """Give a file its name in one step."""
    path.rename(to)


def remove_folder(path: Path) -> None:
    """Give back the room that a folder takes."""
    shutil.rmtree(path)


def digest(path: Path) -> Digest:
    """Size and CRC32C of a file as it is read back."""
    checksum, size = google_crc32c.Checksum(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
            size += len(block)
    return Digest(size=size, crc32c=checksum.hexdigest().decode("ascii"))


def free_bytes(path: Path) -> int:
    """Room on the disk of a folder, or of the nearest one above that exists."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
