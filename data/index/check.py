"""Comparing an index with its shards in full: every byte of every shard is read once."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np

from data.errors import ShardFault
from data.index.file import Index, ShardInfo

CHUNK = 4 << 20
_MOST_TOLD = 20  # of samples of one shard

Progress = Callable[[int, int], None]  # (shards done, shards)


def compare_with_shards(index: Index, threads: int, progress: Progress | None = None) -> list[str]:
    """How the shards differ from what was indexed: names, sizes, etags, digests, and the CRC32C of every sample."""
    faults = index.shard_faults()
    present = {stored.name: stored for stored in index.store.list(".tar")}
    order = np.argsort(index.columns["shard"], kind="stable")
    bounds = np.searchsorted(index.columns["shard"][order], np.arange(len(index.shards) + 1))

    def compare(number: int) -> list[str]:
        shard = index.shards[number]
        if shard.name not in present:
            return []  # is said above
        return _compare(index, shard, order[bounds[number] : bounds[number + 1]])

    with ThreadPoolExecutor(threads) as pool:
        for done, found in enumerate(pool.map(compare, range(len(index.shards))), start=1):
            faults += found
            if progress is not None:
                progress(done, len(index.shards))
    return faults


def _compare(index: Index, shard: ShardInfo, samples: np.ndarray) -> list[str]:
    digest = hashlib.blake2b(digest_size=16)
    starts = index.columns["offset"][samples].astype(np.int64)
    ends = starts + index.columns["nbytes"][samples]
    found = np.zeros(len(samples), dtype=np.int64)
    try:
        for place, part in _chunks(index, shard):
            digest.update(part)
            first, last = np.searchsorted(ends, place, "right"), np.searchsorted(starts, place + len(part))
            for i in range(first, last):
                inside = part[max(0, starts[i] - place) : max(0, ends[i] - place)]
                found[i] = google_crc32c.extend(int(found[i]), inside)
    except ShardFault as error:
        return [f"shard {shard.name}: {error}"]
    wrong = np.flatnonzero(found != index.columns["crc32c"][samples])
    faults = [
        f"sample {samples[i]} at {index.where(int(samples[i]))} has CRC32C {found[i]:08x}, was indexed with "
        f"{index.columns['crc32c'][samples[i]]:08x}"
        for i in wrong[:_MOST_TOLD]
    ]
    if len(wrong) > _MOST_TOLD:
        faults.append(f"shard {shard.name}: {len(wrong) - _MOST_TOLD} more samples differ")
    if digest.hexdigest() != shard.digest:
        faults.insert(0, f"shard {shard.name} has digest {digest.hexdigest()}, was indexed with {shard.digest}")
    return faults


def _chunks(index: Index, shard: ShardInfo) -> Iterator[tuple[int, bytes]]:
    """(first byte, bytes) from end to end; past the indexed size as well, for what was added there."""
    place, size = 0, index.store.size(shard.name)
    while place < size and (part := index.store.read_range(shard.name, place, min(CHUNK, size - place), shard.etag)):
        yield place, part
        place += len(part)
