"""What metrics.jsonl says of a run over several replicas, and of one with bad samples."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.loading.rows import ReadStats
from data.store.stats import StoreMeter, StoreStats
from data.types import RawSample
from data.visual.decode_cache import CacheCounters
from parallel.config import ParallelConfig
from tests.data.conftest import clip_bytes, make_samples, train_tokenizer
from tests.harness.run_metrics import train_on_bad_samples, train_over_storage
from tests.harness.runs import STEPS, write_recipe
from tests.harness.skipped import write_text
from tests.prove.context import Worlds


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counted(seed: int) -> ReadStats:
    """Every count another number, with latencies of milliseconds or of seconds."""
    meter = StoreMeter()
    for number in range(10):
        meter.add_latency(0.01 if seed == 1 else 1.0 + number)
    store, cache = (
        {each.name: seed * 100 + place for place, each in enumerate(fields(of)) if each.name != "latencies"}
        for of in (StoreStats, CacheCounters)
    )
    return ReadStats(
        store=StoreStats(**store, latencies=meter.stats().latencies),
        cache=CacheCounters(**cache),
        refetched=seed,
        workers_replaced=seed + 1,
    )


def test_counts_of_replicas_are_summed_as_numbers() -> None:
    one, other = counted(1), counted(2)
    assert ReadStats.from_numbers(one.to_numbers()) == one
    summed = [float(a + b) for a, b in zip(one.to_numbers(), other.to_numbers(), strict=True)]
    assert ReadStats.from_numbers(summed) == one + other
    assert len(ReadStats().to_numbers()) == len(summed)  # a replica that has read nothing adds zeros
    told = ReadStats.from_numbers(summed).metrics()
    assert told["store_latency_p50"] < 0.02 and told["store_latency_p95"] > 5  # of the answers of both
    assert told["store_refetched"] == 3 and told["cache_hit_rate"] == pytest.approx(300 / 602)
    assert "cache_hit_rate" not in ReadStats().metrics()


def test_slow_storage_of_the_second_replica_is_a_wait_for_data(worlds: Worlds, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_text(tmp_path), "stage2", ParallelConfig(), 2).name
    seen = worlds.run(2, train_over_storage, folder=tmp_path, recipe=recipe, slow_replica=1, seconds=0.1)
    told = lines(tmp_path / "run" / "metrics.jsonl")
    assert len(told) == STEPS == len(seen[0]) == len(seen[1])
    for line, one, other in zip(told, *seen, strict=True):
        assert one.store.requests > 0 < other.store.requests
        assert line["store_requests"] == one.store.requests + other.store.requests
        assert line["store_bytes"] == one.store.bytes + other.store.bytes
    # Each of its reads took a tenth of a second, and computing a step of a few short texts does not.
    waited = 0.1 * (seen[1][0].store.requests - 1)
    assert told[0]["data_seconds"] > 0.5 * waited > 0.2
    assert all(line["data_seconds"] <= line["step_seconds"] for line in told)


def test_bad_samples_are_counted_on_after_a_resume(worlds: Worlds, tmp_path: Path) -> None:
    train_tokenizer(tmp_path / "tokenizer")
    samples = []
    for sample in make_samples(40, clip_bytes()):
        media = {n: (kind, data[:60] + bytes(len(data) - 60)) for n, (kind, data) in sample.media.items()}
        if sample.content["source"] != "clips":  # every picture's header is whole, and nothing after it
            samples.append(RawSample(key=sample.key, content=sample.content, media=media))
    write_shards(tmp_path / "mixed", "mixed", samples, samples_per_shard=12)
    build_index(tmp_path / "mixed", load_tokenizer(tmp_path / "tokenizer"))
    recipe = write_recipe(tmp_path, tmp_path, "stage2", ParallelConfig(), 1).name
    worlds.run(1, train_on_bad_samples, folder=tmp_path, recipe=recipe, stops=(2, 4))
    records = lines(tmp_path / "run" / "quarantine_0.jsonl")
    told = [line["bad_samples"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(told) == 4 and 0 < told[1] < told[3] == len(records)
    assert told == sorted(told)
    assert all(int(record["crc32c"], 16) >= 0 and len(record["crc32c"]) == 8 for record in records)
