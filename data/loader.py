"""Rows as they are trained on: read, decode, pack, ahead of the trainer in a thread.

Nothing here is state: the cursor of a checkpoint is that of the last step trained on, whatever was read ahead.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.config import IGNORE, DataConfig
from data.encode import encode_sample
from data.errors import MismatchError, SampleError
from data.index_file import Index, open_index
from data.media import PatchReader
from data.plan import Cursor, Plan, RowPlan, StepPlan, assign_rows, sample_id
from data.tokenizer import Tokenizer, load_tokenizer
from data.types import EncodedSample, Float32, MediaSize, PackedRow, RawSample

Quarantine = Callable[[dict[str, Any]], None]


def open_indexes(config: DataConfig) -> list[Index]:
    """The index of every source, checked against shards and tokenizer. Raises MismatchError with the source's name."""
    tokenizer = load_tokenizer(config.tokenizer)
    indexes = []
    for source in config.sources:
        try:
            index = open_index(source.path, source.index)
            index.check(tokenizer)
        except ValueError as error:
            raise MismatchError(f"source {source.name!r} at {source.path}: {error}") from None
        indexes.append(index)
    return indexes


def build_reader(config: DataConfig, tokenizer: Tokenizer, indexes: Sequence[Index] | None = None) -> "RowReader":
    """A reader of the configured sources; opens their indexes unless they are given."""
    return RowReader(config, tokenizer, open_indexes(config) if indexes is None else indexes)


class RowReader:
    """Builds packed rows from row plans. For one thread at a time."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, indexes: Sequence[Index]) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._indexes = indexes
        self._patches = PatchReader(config.image, config.video)

    def read(self, row: RowPlan) -> tuple[PackedRow, list[dict[str, Any]]]:
        """The row, and a record for each sample that could not be decoded.

        Such a sample keeps its planned place, tokens and positions, with zero pixels and no targets. Raises
        ShardFault if stored bytes are wrong twice, MismatchError if a sample's length is not the planned one.
        """
        patches = np.empty((row.num_patches, self._config.image.patch_dim), dtype=np.float32)
        encoded: list[EncodedSample] = []
        records: list[dict[str, Any]] = []
        place = 0
        for source_id, index in row.samples:
            raw, sizes, sample = self._encode(source_id, index)
            end = place + int(sample.grids.prod(axis=1).sum())
            if end > row.num_patches:
                raise MismatchError(f"sample {index} of source {source_id} has more patches than its row has left")
            try:
                self._patches.read_into(raw, sample.media, sizes, patches[place:end])
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
        return packed, records

    def close(self) -> None:
        """End the decoder's process."""
        self._patches.close()

    def _encode(self, source_id: int, index: int) -> tuple[RawSample, list[MediaSize], EncodedSample]:
        raw = self._indexes[source_id].read_raw(index)
        sizes = self._indexes[source_id].media_sizes(index)
        config = self._config
        return raw, sizes, encode_sample(raw.content, sizes, self._tokenizer, config.image, config.video)

    def _record(self, source_id: int, index: int, key: str, reason: str) -> dict[str, Any]:
        return {
            "sample_id": sample_id(source_id, index),
            "source": self._config.sources[source_id].name,
            "index": index,
            "key": key,
            "where": self._indexes[source_id].where(index),
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


class Loader:
    """The rows of one replica, step after step, read ahead by `prefetch_steps`."""

    def __init__(
        self,
        config: DataConfig,
        plan: Plan,
        reader: RowReader,
        dp_rank: int,
        dp_size: int,
        cursor: Cursor,
        quarantine: Quarantine,
    ) -> None:
        if not 0 <= dp_rank < dp_size or config.rows_per_step % dp_size:
            raise ValueError(
                f"dp rank {dp_rank} of {dp_size} with data.rows_per_step {config.rows_per_step}: "
                f"the rank must be below the size, and the size must divide the rows"
            )
        self._plan = plan
        self._reader = reader
        self._dp_rank = dp_rank
        self._dp_size = dp_size
        self._quarantine = quarantine
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=config.prefetch_steps)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read_ahead, args=(cursor,), name="data-loader", daemon=True)
        self._thread.start()

    def next_step(self) -> tuple[StepPlan, list[PackedRow]]:
        """The next step and this replica's rows of it. What failed in the thread is raised here, now and ever after."""
        if self._error is None:
            item = self._next_item()
            if not isinstance(item, BaseException):
                step, rows, records = item
                for record in records:
                    self._quarantine(record)
                return step, rows
            self._error = item
        raise self._error

    def close(self) -> None:
        """Stop reading; safe to call twice, and while the thread waits or decodes."""
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._reader.close()
        self._thread.join(timeout=10.0)
        self._reader.close()  # the thread may have started a decoder in between

    def _next_item(self) -> Any:
        while True:
            try:
                return self._ready.get(timeout=1.0)
            except queue.Empty:
                if self._stop.is_set() or not (self._thread.is_alive() or self._ready.qsize()):
                    return RuntimeError("the loader is closed")

    def _read_ahead(self, cursor: Cursor) -> None:
        try:
            while not self._stop.is_set():
                step = self._plan.step(cursor)
                rows, records = [], []
                for number in assign_rows(step.rows, self._dp_size)[self._dp_rank]:
                    row, found = self._reader.read(step.rows[number])
                    rows.append(row)
                    records.extend(found)
                    if self._stop.is_set():
                        return
                self._put((step, rows, records))
                cursor = step.next_cursor
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.2)
                return
