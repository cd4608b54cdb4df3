"""Samples in shards on the loopback service, read back as a trainer reads them, and what became of each."""

import io
import tarfile
from dataclasses import asdict, dataclass

import google_crc32c
import numpy as np

from data.formats.shards import parse_sample
from data.formats.stored import OURS
from data.index.file import Index, ShardInfo
from data.store.stats import StoreStats
from data.store.store import ShardStore, StoredObject
from data.types import RawSample
from tests.harness.oss_service import OssService

SHARDS, PER_SHARD = 2, 12


@dataclass(frozen=True)
class Samples:
    """What was stored: the bytes of each sample, and an index of them without columns that nobody needs here."""

    data: list[bytes]
    tars: dict[str, bytes]
    """By name, of whole shards."""
    shards: list[ShardInfo]
    columns: dict[str, np.ndarray]

    def index(self, store: ShardStore) -> Index:
        """The index over a store that has the shards."""
        return Index(store, {"shards": [asdict(shard) for shard in self.shards], "format": OURS}, self.columns)


def store_samples(service: OssService, prefix: str) -> Samples:
    """Put two small shards there."""
    random = np.random.default_rng(5)
    data, tars, shards = [], {}, []
    places: dict[str, list[int]] = {"shard": [], "offset": [], "nbytes": [], "crc32c": []}
    for number in range(SHARDS):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            for sample in range(PER_SHARD):
                start = stream.tell()
                # The picture first: faults strike at the first bytes, where a bit that differs must not be padding.
                picture = random.bytes(int(random.integers(3_000, 60_000)))
                for suffix, content in (("0.png", picture), ("json", b"{}")):
                    entry = tarfile.TarInfo(f"{number}{sample:04}.{suffix}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
                stored = stream.getvalue()[start : stream.tell()]
                data.append(stored)
                for name, value in zip(places, (number, start, len(stored), google_crc32c.value(stored)), strict=True):
                    places[name].append(value)
        name = f"s-{number:06}.tar"
        tars[name] = stream.getvalue()
        etag = service.put(f"{prefix}/{name}", tars[name])
        shards.append(ShardInfo(name=name, size=len(tars[name]), digest="", etag=etag))
    return Samples(data, tars, shards, {name: np.array(values, dtype=np.int64) for name, values in places.items()})


class WatchedStore:
    """A store, and how many of its answers were not the bytes that lie there: what a CRC has to catch."""

    def __init__(self, store: ShardStore, samples: Samples) -> None:
        self._store = store
        self._samples = samples
        self.wrong = 0

    def read_range(self, name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """As the store's own."""
        data = self._store.read_range(name, offset, length, etag)
        self.wrong += data != self._samples.tars[name][offset : offset + length]
        return data

    def list(self, suffix: str) -> list[StoredObject]:
        """As the store's own."""
        return self._store.list(suffix)

    def size(self, name: str) -> int:
        """As the store's own."""
        return self._store.size(name)

    def where(self, name: str) -> str:
        """As the store's own."""
        return self._store.where(name)

    def stats(self) -> StoreStats:
        """As the store's own."""
        return self._store.stats()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How reading all samples in order ended."""

    lost: int
    repeated: int
    """Of the samples that came, those that came before."""
    other: int
    """Places at which something else came than lies there."""
    wrong_below: int
    """Answers of the store that were wrong, whether the CRC caught them or not."""
    error: str
    """Type and text of what ended it; empty if nothing did."""
    stats: StoreStats


def read_all(store: ShardStore, samples: Samples, run_length: int = 1) -> Outcome:
    """Read every sample in order as the trainer does, so many by one request, until something fatal."""
    watched = WatchedStore(store, samples)
    index = samples.index(watched)
    came: list[RawSample] = []
    error = ""
    try:
        while len(came) < len(samples.data):
            came += index.read_run(len(came), index.run_from(len(came), run_length))
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    due = [parse_sample(data) for data in samples.data]
    # What a fatal error keeps from being read is not lost: nobody goes on without it.
    begun = due if not error else due[: len(came)]
    kinds = {_picture(sample) for sample in came}
    return Outcome(
        lost=len({_picture(sample) for sample in begun} - kinds),
        repeated=len(came) - len(kinds),
        other=sum(one != two for one, two in zip(came, begun, strict=False)),
        wrong_below=watched.wrong,
        error=error,
        stats=store.stats(),
    )


def _picture(sample: RawSample) -> bytes:
    """What tells samples apart."""
    return sample.media[0][1]
