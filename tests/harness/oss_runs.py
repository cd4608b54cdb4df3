"""Rows of pictures read from the loopback service, and how many requests that takes where runs of samples are kept."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.config import SourceConfig
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan
from data.store.config import LimiterConfig, OssConfig
from data.types import RawSample
from tests.data.conftest import picture_bytes, train_tokenizer
from tests.harness.oss_service import OssService, oss_service
from tests.harness.runs import data_config

SAMPLES, PER_SHARD, WINDOW = 512, 100, 256
TOKENS, PATCHES = 21, 21
"""Of a sample in the mean, and room for its patches, of which it has 14: tokens fill a row first."""


def requests_in_runs(run_length: int, row_samples: tuple[int, ...]) -> dict[int, float]:
    """Requests that the service served for the samples of an epoch in runs, as a share of those for them one by one.

    Args:
        run_length: samples that stay together.
        row_samples: how many a row holds, about; for each of these. The planner keeps at most an eighth of a row
            together.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-runs-") as folder, oss_service() as (service, limits):
        place = Path(folder)
        train_tokenizer(place / "tokenizer")
        write_shards(place / "mixed", "mixed", _captioned(), samples_per_shard=PER_SHARD)
        build_index(place / "mixed", load_tokenizer(place / "tokenizer"))
        service.put_folder(place / "mixed", "mixed", ".tar")
        found = {}
        for count in row_samples:
            in_runs, alone = (_read_epoch(service, place, limits, length, count) for length in (run_length, 1))
            found[count] = in_runs / alone
        return found


def _captioned() -> list[RawSample]:
    """A small picture and a few words each; of many lengths, since equal ones would be packed in the stored order."""
    random = np.random.default_rng(2)
    samples = []
    for n in range(SAMPLES):
        words, sides = int(random.integers(1, 30)), 28 * random.integers(1, 4, 2)
        parts = [{"type": "image", "media": 0}, {"type": "text", "text": " left" * words}]
        picture = picture_bytes(int(sides[0]), int(sides[1]), n)
        samples.append(RawSample(key=f"{n:06}", content={"parts": parts}, media={0: ("png", picture)}))
    return samples


def _read_epoch(service: OssService, folder: Path, limits: str, run_length: int, row_samples: int) -> int:
    """Requests for one epoch."""
    config = replace(
        data_config(folder),
        sources=(SourceConfig(name="mixed", path="oss://shards/mixed", index=str(folder / "mixed" / "index")),),
        oss=OssConfig(
            endpoint=service.endpoint, limiter=LimiterConfig(folder=limits, requests_per_second=5000, start=1.0)
        ),
        tokens_per_row=TOKENS * row_samples,
        patches_per_row=PATCHES * row_samples,
        rows_per_step=1,
        window=WINDOW,
        run_length=run_length,
    )
    indexes = open_indexes(config)
    plan, reader = Plan(config, indexes), build_reader(config, load_tokenizer(config.tokenizer), indexes)
    cursor, came = Cursor(), 0
    service.forget()
    while cursor.window < SAMPLES // WINDOW:
        step = plan.step(cursor)
        cursor = step.next_cursor
        came += sum(len(reader.read(row)[0].sample_ids) for row in step.rows)
    reader.close()
    assert came == SAMPLES, came
    return service.counts["GET object served"]
