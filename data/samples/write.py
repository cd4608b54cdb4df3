"""Samples to webdataset shards: a JSON member first, then its media, then the next sample."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

from data.samples.items import Media

SAMPLES_PER_SHARD = 1000

Sample = tuple[dict[str, Any], tuple[Media, ...]]


def write_source(folder: Path, source: str, samples: Iterable[Sample]) -> int:
    """Write `samples` as FOLDER/SOURCE-NNNNNN.tar and return how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    writer: TarWriter | None = None
    number = -1
    for number, (content, media) in enumerate(samples):
        if number % SAMPLES_PER_SHARD == 0:
            if writer is not None:
                writer.close()
            path = folder / f"{source}-{number // SAMPLES_PER_SHARD:06d}.tar"
            # Fixed times and owners: the same samples give the same bytes. An integer time: a float costs each member
            # a PAX header of 1 KiB and the shard would no longer be plain ustar.
            writer = TarWriter(str(path), user="triptych", group="triptych", mtime=0, encoder=False)
        assert writer is not None
        key = f"{source}-{number:06d}"
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        # TarWriter sorts the members of one call by name, and digits sort before "json": two calls keep JSON first.
        writer.write({"__key__": key, "json": text.encode()})
        for place, one in enumerate(media):
            writer.write({"__key__": key, f"{place}.{one.suffix}": one.content})
    if writer is not None:
        writer.close()
    return number + 1
