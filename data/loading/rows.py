"""Rows as they are trained on: read, checked, decoded, packed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from data.config import IGNORE, DataConfig, SourceConfig
from data.encoding.encode import encode_sample
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.errors import DataFaults, MismatchError, SampleError
from data.index.file import Index, open_index
from data.index.mmap_text import TextIndex, is_text
from data.loading.media import PatchReader
from data.plan.lengths import capped
from data.plan.plan import RowPlan, sample_id
from data.store.stats import NUM_LATENCIES, StoreStats
from data.types import EncodedSample, Float32, MediaSize, PackedRow, RawSample
from data.visual.cache_file import Use
from data.visual.decode_cache import CacheCounters

SourceIndex = Index | TextIndex


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadStats:
    """Counts of the processes that read: for one replica, or summed over all of them."""

    store: StoreStats = field(default_factory=StoreStats)
    cache: CacheCounters = field(default_factory=CacheCounters)
    refetched: int = 0
    """Samples whose CRC32C was not that of the index and that were fetched again."""
    workers_replaced: int = 0

    def __add__(self, other: "ReadStats") -> "ReadStats":
        return ReadStats(
            store=self.store + other.store,
            cache=self.cache + other.cache,
            refetched=self.refetched + other.refetched,
            workers_replaced=self.workers_replaced + other.workers_replaced,
        )

    def to_numbers(self) -> list[float]:
        """Every count in a fixed order, so that lists of several replicas can be summed place by place."""
        store, cache = asdict(self.store), asdict(self.cache)
        latencies = store.pop("latencies")
        return [*store.values(), *latencies, *cache.values(), self.refetched, self.workers_replaced]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> "ReadStats":
        """Inverse of `to_numbers`."""
        rest = iter(numbers)

        def filled(record: type[StoreStats | CacheCounters]) -> dict[str, Any]:
            plain = [each for each in fields(record) if each.name != "latencies"]
            return {each.name: _as(each.default, next(rest)) for each in plain}

        store = filled(StoreStats) | {"latencies": tuple(int(next(rest)) for _ in range(NUM_LATENCIES))}
        cache = CacheCounters(**filled(CacheCounters))
        return cls(store=StoreStats(**store), cache=cache, refetched=int(next(rest)), workers_replaced=int(next(rest)))

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a log; `cache_hit_rate` only once there was a hit or a miss."""
        store = {f"store_{key}": value for key, value in self.store.metrics().items()}
        cache = {f"cache_{key}": float(value) for key, value in asdict(self.cache).items()}
        if looked := self.cache.hits + self.cache.misses:
            cache["cache_hit_rate"] = self.cache.hits / looked
        rest = {"store_refetched": float(self.refetched), "workers_replaced": float(self.workers_replaced)}
        return store | cache | rest


def _as(default: Any, number: float) -> Any:
    """The number as an int where the default is one: sums over replicas are floats."""
    return type(default)(number)


NONE_BAD: Mapping[tuple[int, int], str] = MappingProxyType({})


def open_source(config: DataConfig, source: SourceConfig, trusted: bool = False) -> SourceIndex:
    """The index of a source of samples, or of token files. Raises MismatchError."""
    return (
        TextIndex(source.path, config.tokens_per_row)
        if is_text(source.path)
        else open_index(source.path, source.index, config.oss, trusted)
    )


def open_indexes(config: DataConfig) -> list[SourceIndex]:
    """The index of every source, checked against shards and tokenizer. Raises DataFaults, with all that do not fit."""
    faults: list[str] = []
    indexes: list[SourceIndex] = []
    tokenizer = None
    try:
        tokenizer = load_tokenizer(config.tokenizer)
    except MismatchError as error:
        faults.append(str(error))
    for source in config.sources:
        try:
            index = open_source(config, source)
            if tokenizer is not None:
                index.check(tokenizer)
        except (ValueError, OSError) as error:
            faults.append(f"source {source.name!r} at {source.path}: {error}")
        else:
            indexes.append(index)
    if faults:
        raise DataFaults(*faults)
    return indexes


def build_reader(config: DataConfig, tokenizer: Tokenizer, indexes: Sequence[SourceIndex] | None = None) -> "RowReader":
    """A reader of the configured sources; opens their indexes unless they are given."""
    return RowReader(config, tokenizer, open_indexes(config) if indexes is None else indexes)


def open_reader(config: DataConfig) -> "RowReader":
    """The reader of a process of its own. Shards and columns are not checked again: the trainer has done so."""
    tokenizer = load_tokenizer(config.tokenizer)
    return RowReader(config, tokenizer, [open_source(config, source, trusted=True) for source in config.sources])


class RowReader:
    """Builds packed rows from row plans. For one thread at a time."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, indexes: Sequence[SourceIndex]) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._indexes = indexes
        self._patches = PatchReader(config.image, config.video)

    def read(
        self,
        row: RowPlan,
        bad: Mapping[tuple[int, int], str] = NONE_BAD,
        uses: Mapping[tuple[int, int], Use] = MappingProxyType({}),
        begin: Callable[[tuple[int, int]], None] = lambda _: None,
    ) -> tuple[PackedRow, list[dict[str, Any]]]:
        """The row, and a record for each sample that could not be decoded.

        Such a sample keeps its planned place, tokens and positions, with zero pixels and no targets. Raises
        ShardFault if stored bytes are wrong twice, MismatchError if a sample's length is not the planned one.

        Args:
            bad: samples that are not to be decoded -> why.
            uses: when samples are read again, for the decode cache.
            begin: told of each sample before it is touched.
        """
        patches = np.empty((row.num_patches, self._config.image.patch_dim), dtype=np.float32)
        encoded: list[EncodedSample] = []
        records: list[dict[str, Any]] = []
        place = 0
        stored = self._stored(row.samples)
        for source_id, index in row.samples:
            number = source_id, index
            begin(number)
            raw, sizes, sample = self._encode(next(stored), source_id, index, row.caps.get(number))
            end = place + int(sample.grids.prod(axis=1).sum())
            if end > row.num_patches:
                raise MismatchError(f"sample {index} of source {source_id} has more patches than its row has left")
            try:
                if number in bad:
                    raise SampleError(bad[number])
                self._patches.read_into(
                    raw, sample.media, sizes, patches[place:end], uses.get(number), row.caps.get(number)
                )
            except SampleError as error:
                patches[place:end] = 0
                sample.targets[:] = IGNORE
                records.append(self._record(source_id, index, raw.key, str(error)))
            encoded.append(sample)
            place = end
        packed = pack_row(row, encoded, patches)
        if len(packed.tokens) != row.num_tokens or place != row.num_patches:
            raise MismatchError(
                f"a row was planned with {row.num_tokens} tokens and {row.num_patches} patches but has "
                f"{len(packed.tokens)} and {place}; was the index built with this tokenizer?"
            )
        return replace(packed, num_bad=len(records)), records

    def stats(self) -> ReadStats:
        """What stores and decode cache counted so far in this process."""
        opened = [index for index in self._indexes if isinstance(index, Index)]
        return ReadStats(
            store=sum((index.store.stats() for index in opened), StoreStats()),
            cache=self._patches.counters,
            refetched=sum(index.refetched for index in opened),
        )

    def close(self) -> None:
        """End the decoder's process."""
        self._patches.close()

    def _stored(self, samples: Sequence[tuple[int, int]]) -> Iterator[RawSample]:
        """Each sample as it is stored, when it is asked for; those that lie side by side come by one request."""
        place = 0
        while place < len(samples):
            source_id, index = samples[place]
            opened = self._indexes[source_id]
            following = 1
            while samples[place + following : place + following + 1] == ((source_id, index + following),):
                following += 1
            if isinstance(opened, TextIndex):
                found = [RawSample(key=str(index + n), content={}, media={}) for n in range(following)]
            else:
                found = opened.read_run(index, opened.run_from(index, following))
            yield from found
            place += len(found)

    def _encode(
        self, raw: RawSample, source_id: int, index: int, cap: int | None
    ) -> tuple[RawSample, list[MediaSize], EncodedSample]:
        opened = self._indexes[source_id]
        if isinstance(opened, TextIndex):
            return raw, [], opened.encode(index, self._tokenizer.vocab_size)
        sizes = opened.media_sizes(index)
        image, video = capped(self._config.image, self._config.video, cap)
        return raw, sizes, encode_sample(raw.content, sizes, self._tokenizer, image, video)

    def _record(self, source_id: int, index: int, key: str, reason: str) -> dict[str, Any]:
        opened = self._indexes[source_id]
        return {
            "sample_id": sample_id(source_id, index),
            "source": self._config.sources[source_id].name,
            "index": index,
            "key": key,
            "where": opened.where(index),
            # The index's is that of the bytes: they were compared. Token files have none.
            "crc32c": f"{int(opened.columns['crc32c'][index]):08x}" if isinstance(opened, Index) else None,
            "reason": reason,
        }


def pack_row(row: RowPlan, encoded: Sequence[EncodedSample], patches: Float32) -> PackedRow:
    """Lay samples end to end; only `visual_index` is shifted, positions start anew in each sample."""
    lengths = np.array([len(sample.tokens) for sample in encoded], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return PackedRow(
        tokens=np.concatenate([sample.tokens for sample in encoded]),
        targets=np.concatenate([sample.targets for sample in encoded]),
        positions=np.concatenate([sample.positions for sample in encoded], axis=1),
        segment_lengths=lengths,
        grids=np.concatenate([sample.grids for sample in encoded]),
        visual_index=np.concatenate([s.visual_index + start for s, start in zip(encoded, starts, strict=True)]),
        patches=patches,
        sample_ids=np.array([sample_id(*sample) for sample in row.samples], dtype=np.int64),
        source_ids=np.array([source_id for source_id, _ in row.samples], dtype=np.int64),
    )
