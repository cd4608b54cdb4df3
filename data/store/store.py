"""Where shards lie: one small interface, and a local (or mounted) folder behind it; data/store/oss.py has the other."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.store.config import OssConfig
from data.store.stats import StoreMeter, StoreStats


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """What a store tells of an object without reading it."""

    name: str
    size: int
    """Bytes."""
    etag: str | None = None
    """Changes with the content; None where the store knows nothing of the kind."""
    modified: float | None = None
    """When it was written, in seconds since 1970, where that was asked for."""


class ShardStore(Protocol):
    """Read-only access to the objects under one place. Names are relative, with `/` between folders."""

    def list(self, suffix: str) -> list[StoredObject]:
        """Objects whose names end in `suffix`, sorted by name."""
        ...

    def size(self, name: str) -> int:
        """Bytes of an object; raises FileNotFoundError."""
        ...

    def read_range(self, name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the object.

        Raises ShardFault if the object has another etag than the one given.
        """
        ...

    def where(self, name: str) -> str:
        """Where an object lies, and what else helps to find out why it is as it is; for messages."""
        ...

    def stats(self) -> StoreStats:
        """What was counted in this process."""
        ...


class LocalStore:
    """A folder. Opens the file for every read: one system call more, and no descriptors to run out of."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"no folder {self.folder}; make the data first or correct the path of the source")
        self._meter = StoreMeter()

    def list(self, suffix: str) -> list[StoredObject]:
        """Files in this folder itself, sorted by name; folders below (such as index/) are not entered."""
        with os.scandir(self.folder) as entries:
            files = [entry for entry in entries if entry.name.endswith(suffix)]
            for entry in files:
                if not entry.is_file():
                    raise ValueError(f"{entry.path} is no file, or a link that leads nowhere; restore or remove it")
            found = [StoredObject(name=entry.name, size=entry.stat().st_size) for entry in files]
        return sorted(found, key=lambda each: each.name)

    def size(self, name: str) -> int:
        """Bytes of the file."""
        return (self.folder / name).stat().st_size

    def read_range(self, name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """Bytes of the file. A file has no etag, so none is looked at."""
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
            self._meter.add(requests=1, bytes=sum(map(len, parts)))
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.folder / name)

    def stats(self) -> StoreStats:
        """Reads and bytes so far."""
        return self._meter.stats()


def open_store(path: str | Path, config: OssConfig | None = None) -> ShardStore:
    """The store that `path` names: a folder, `file://folder` or `oss://bucket/prefix`.

    Raises ValueError for other schemes, for a folder that is not there, and for `oss://` without a config.
    """
    scheme, separator, _ = str(path).partition("://")
    if separator and scheme == "oss":
        if config is None:
            raise ValueError(f"{path}: say in the recipe how to reach it: data.oss.region and so on, see docs/oss.md")
        from data.store.oss import OssStore  # here, because oss2 takes half a second to import

        return OssStore(str(path), config)
    if separator and scheme != "file":
        raise ValueError(f"{path}: there is no store {scheme}://; use a folder, file://folder or oss://bucket/prefix")
    return LocalStore(str(path).removeprefix("file://"))
