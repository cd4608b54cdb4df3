"""Reading one shard into its part of an index: every sample is parsed, measured and counted once."""

import hashlib
from collections.abc import Sequence

from data.encoding.render import Run, render_sample
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.errors import FormatError, MismatchError
from data.formats.shards import StoredSample, scan_shard
from data.index.count import count_tokens
from data.index.file import ShardInfo, digest_chunks
from data.index.measure import Measurer
from data.index.part import IndexSettings, Part, PartRows, load_part, save_part
from data.store.store import StoredObject, open_store
from data.types import RawSample

BATCH_SAMPLES = 256  # that the child process for pictures is asked about at once
BATCH_BYTES = 64 << 20
_MAX_SAMPLE = 2**32 - 1


class ShardIndexer:
    """Makes parts. Holds the child processes that look at pictures and clips. For one thread at a time."""

    def __init__(self, settings: IndexSettings, tokenizer: Tokenizer | None = None) -> None:
        self._settings = settings
        self._store = open_store(settings.source, settings.oss)
        self._tokenizer = tokenizer or load_tokenizer(settings.tokenizer)
        if self._tokenizer.digest != settings.tokenizer_digest:
            raise MismatchError(f"the tokenizer in {settings.tokenizer} changed while the index was built; start again")
        self._measurer = Measurer(settings.decode_pictures)

    def make(self, stored: StoredObject) -> int:
        """Write the part of a shard unless it is there; number of samples. Raises FormatError for a damaged shard."""
        part = load_part(self._settings, stored.name)
        if part is None or not self._is_same(part.shard, stored):
            part = self._index(stored)
            save_part(self._settings, part)
        return len(part.columns["offset"])

    def close(self) -> None:
        """End the child processes."""
        self._measurer.close()

    def _is_same(self, shard: ShardInfo, stored: StoredObject) -> bool:
        if (shard.size, shard.etag) != (stored.size, stored.etag):
            return False
        if stored.etag is not None:
            return True
        read = self._store.read_range
        return shard.digest == digest_chunks(lambda offset, length: read(stored.name, offset, length), stored.size)

    def _index(self, stored: StoredObject) -> Part:
        rows = PartRows(stored.name)
        digest = hashlib.blake2b(digest_size=16)
        damaged = None
        batch: list[StoredSample] = []
        nbytes = 0
        try:
            for sample in scan_shard(self._store, stored.name, stored.etag, digest.update):
                batch.append(sample)
                nbytes += len(sample.data)
                if len(batch) >= BATCH_SAMPLES or nbytes >= BATCH_BYTES:
                    self._add(batch, rows)
                    batch, nbytes = [], 0
            self._add(batch, rows)
        except FormatError as error:
            if not self._settings.skip_damaged:
                raise FormatError(
                    f"{error}. Write it again, or leave damaged shards out with `--skip-damaged-shards`"
                ) from None
            damaged, rows = str(error), PartRows(stored.name)
            whole = digest_chunks(lambda o, n: self._store.read_range(stored.name, o, n, stored.etag), stored.size)
        shard = ShardInfo(
            name=stored.name,
            size=stored.size,
            digest=digest.hexdigest() if damaged is None else whole,
            etag=stored.etag,
        )
        return rows.part(shard, damaged)

    def _add(self, batch: Sequence[StoredSample], rows: PartRows) -> None:
        parsed: list[tuple[RawSample, list[Run]] | FormatError] = []
        for stored in batch:
            try:
                raw = self._parse(stored)
                parsed.append((raw, render_sample(raw.content)))
            except FormatError as error:
                parsed.append(error)
        whole = [pair for pair in parsed if not isinstance(pair, FormatError)]
        measured = iter(self._measurer.measure(whole))
        counted = iter(count_tokens([runs for _, runs in whole], self._tokenizer))
        for stored, pair in zip(batch, parsed, strict=True):
            if isinstance(pair, FormatError):
                rows.refuse(stored.key, str(pair), stored.again)
                continue
            sizes, count = next(measured), next(counted)
            if isinstance(sizes, list):
                rows.add(stored, pair[0], sizes, count)
            else:
                rows.refuse(stored.key, str(sizes))

    def _parse(self, stored: StoredSample) -> RawSample:
        if len(stored.data) > _MAX_SAMPLE:
            raise FormatError(f"sample of {len(stored.data)} bytes; the most is {_MAX_SAMPLE}")
        if stored.again:
            raise FormatError(
                f"key {stored.key!r} comes back at byte {stored.offset}; keep the members of a sample adjacent"
            )
        return stored.parse(self._settings.format_name)
