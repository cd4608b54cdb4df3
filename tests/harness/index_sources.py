"""Sources to index, what became of their samples, and looking over an indexer's shoulder."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.formats.shards import write_shards
from data.index.build import Index
from data.index.shard import ShardIndexer
from data.store.store import StoredObject
from data.types import RawSample
from tests.data.conftest import picture_bytes, train_tokenizer

PICTURE = picture_bytes(48, 64, kind="JPEG")


def make_source(folder: Path, shards: int, samples_per_shard: int) -> list[str]:
    """A tokenizer and a source of captioned pictures in `folder`; the keys in their order."""
    train_tokenizer(folder / "tokenizer")
    samples = [
        RawSample(
            key=f"{number:06d}",
            content={"parts": [{"type": "image", "media": 0}, {"type": "text", "text": f"the digit {number}"}]},
            media={0: ("jpg", PICTURE)},
        )
        for number in range(shards * samples_per_shard)
    ]
    write_shards(folder / "source", "s", samples, samples_per_shard)
    return [sample.key for sample in samples]


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where samples are after all, by key; out of order are those in another place than the one written."""

    lost: int
    repeated: int
    misplaced: int


def account(index: Index, keys: list[str]) -> Account:
    """Every sample is read back; one that is listed as refused is not lost."""
    found = [index.read_raw(i).key for i in range(len(index))]
    listed = [entry["key"] for entry in index.meta["refused"]]
    times = Counter(found)
    kept = [key for key in keys if key in times]
    return Account(
        lost=len(set(keys) - times.keys() - set(listed)),
        repeated=sum(count - 1 for count in times.values()) + len(times.keys() & set(listed)),
        misplaced=sum(one != other for one, other in zip(found, kept, strict=False)),
    )


@contextmanager
def watch_shards() -> Iterator[list[str]]:
    """Names of the shards whose samples are read in this process."""
    read: list[str] = []
    index = ShardIndexer._index

    def watched(self: ShardIndexer, stored: StoredObject) -> Any:
        read.append(stored.name)
        return index(self, stored)

    ShardIndexer._index = watched  # type: ignore[method-assign]
    try:
        yield read
    finally:
        ShardIndexer._index = index  # type: ignore[method-assign]


@contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """`place.name` (or `place[name]`) is another for a while."""
    is_dict = isinstance(place, dict)
    old = place[name] if is_dict else getattr(place, name)
    put = place.__setitem__ if is_dict else lambda name, value: setattr(place, name, value)
    put(name, value)
    try:
        yield
    finally:
        put(name, old)
