"""Where shards lie. One small interface; only a local (or mounted) directory for now."""

import os
from pathlib import Path
from typing import Protocol


class ShardStore(Protocol):
    """Read-only access to the objects under one place. Names are relative, with `/` between folders."""

    def list(self, suffix: str) -> list[str]:
        """Names that end in `suffix`, sorted."""
        ...

    def size(self, name: str) -> int:
        """Bytes of an object; raises FileNotFoundError."""
        ...

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the object."""
        ...


class LocalStore:
    """A folder. Opens the file for every read: one system call more, and no descriptors to run out of."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"no folder {self.folder}; make the data first or correct the path of the source")

    def list(self, suffix: str) -> list[str]:
        """Names of the files in this folder itself, sorted; folders below (such as index/) are not entered."""
        with os.scandir(self.folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_file())

    def size(self, name: str) -> int:
        """Bytes of the file."""
        return (self.folder / name).stat().st_size

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)


def open_store(path: str | Path) -> ShardStore:
    """The store that `path` names. Raises ValueError for schemes that are not there yet."""
    scheme, separator, _ = str(path).partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{path}: the store {scheme}:// is not built yet; mount or copy the shards to a local folder")
    return LocalStore(str(path).removeprefix("file://"))
