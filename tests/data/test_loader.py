"""Rows as they reach the trainer, over layouts, damage and resumption."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from data.config import IGNORE, DataConfig
from data.encoding.encode import encode_sample
from data.encoding.tokenizer import Tokenizer
from data.errors import MismatchError, ShardFault
from data.formats.shards import write_shards
from data.index.build import build_index, open_index
from data.loading.loader import Loader
from data.loading.media import PatchReader
from data.loading.pool import InThread
from data.loading.rows import RowReader, build_reader, open_indexes
from data.plan.plan import Cursor, Plan, assign_rows
from data.types import PackedRow, RawSample
from tests.data.conftest import make_samples

Make = Callable[..., Any]


def assert_same_row(one: PackedRow, two: PackedRow) -> None:
    for name in PackedRow.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def open_run(config: DataConfig, tokenizer: Tokenizer) -> tuple[Plan, RowReader]:
    indexes = open_indexes(config)
    return Plan(config, indexes), build_reader(config, tokenizer, indexes)


def read_steps(
    config: DataConfig, tokenizer: Tokenizer, steps: int, rank: int = 0, size: int = 1, cursor: Cursor | None = None
) -> list:
    plan, reader = open_run(config, tokenizer)
    records: list[dict] = []
    loader = Loader(config, plan, InThread(reader), rank, size, cursor or Cursor(), records.append)
    try:
        return [(*loader.next_step(), list(records)) for _ in range(steps)]
    finally:
        loader.close()


def test_a_row_is_its_samples_laid_end_to_end(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    config = make_config(make_source())
    (index,) = open_indexes(config)
    pixels = PatchReader(config.image, config.video)
    kinds = set()
    for _, rows, _ in read_steps(config, tokenizer, 3):
        for row in rows:
            token, patch, grid, visual = 0, 0, 0, 0
            for sample_id, length in zip(row.sample_ids.tolist(), row.segment_lengths.tolist(), strict=True):
                raw, sizes = index.read_raw(sample_id), index.media_sizes(sample_id)
                kinds.add(raw.content["source"])
                alone = encode_sample(raw.content, sizes, tokenizer, config.image, config.video)
                assert np.array_equal(row.tokens[token : token + length], alone.tokens)
                assert np.array_equal(row.targets[token : token + length], alone.targets)
                assert np.array_equal(row.positions[:, token : token + length], alone.positions)
                assert np.array_equal(row.grids[grid : grid + len(alone.grids)], alone.grids)
                places = row.visual_index[visual : visual + len(alone.visual_index)]
                assert np.array_equal(places - token, alone.visual_index)
                expected = pixels.read(raw, alone.media, sizes)
                assert np.array_equal(row.patches[patch : patch + len(expected)], expected)
                token, patch = token + length, patch + len(expected)
                grid, visual = grid + len(alone.grids), visual + len(alone.visual_index)
            assert (token, patch, visual) == (len(row.tokens), len(row.patches), len(row.visual_index))
            assert patch == row.grids.prod(axis=1).sum() == 4 * visual
    pixels.close()
    assert kinds == {"text", "caption", "many", "chat", "clips"}


def test_rows_without_pictures_have_empty_arrays_of_the_right_shape(
    make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    samples = [
        RawSample(key=str(n), content={"parts": [{"type": "text", "text": "left " * n}]}, media={}) for n in range(9)
    ]
    config = make_config(make_source(samples=samples), patches_per_row=0)
    (_, rows, _), *_ = read_steps(config, tokenizer, 1)
    for row in rows:
        assert row.patches.shape == (0, 1176) and row.patches.dtype == np.float32
        assert row.grids.shape == (0, 3) and row.grids.dtype == np.int64
        assert row.visual_index.shape == (0,) and row.visual_index.dtype == np.int64
        assert row.tokens.dtype == row.targets.dtype == row.positions.dtype == np.int64


@pytest.mark.parametrize(("size", "prefetch"), [(1, 3), (2, 1), (4, 2)])
def test_rows_do_not_depend_on_replicas_or_prefetch(
    size: int, prefetch: int, make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    folder = make_source(clips=False)
    alone = read_steps(make_config(folder, prefetch_steps=1), tokenizer, 2)
    replicas = [
        read_steps(make_config(folder, prefetch_steps=prefetch), tokenizer, 2, rank, size) for rank in range(size)
    ]
    for number, (step, rows, _) in enumerate(alone):
        assigned = assign_rows(step.rows, size)
        for rank in range(size):
            assert replicas[rank][number][0] == step
            for place, row in zip(assigned[rank], replicas[rank][number][1], strict=True):
                assert_same_row(row, rows[place])


def test_a_saved_cursor_resumes_the_stream_on_other_replicas(
    make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    config = make_config(make_source(clips=False))
    whole = read_steps(config, tokenizer, 4)
    cursor = Cursor.from_dict(whole[1][0].next_cursor.to_dict())
    for rank in range(2):
        for (step, rows, _), (expected, all_rows, _) in zip(
            read_steps(config, tokenizer, 2, rank, 2, cursor), whole[2:], strict=True
        ):
            assert step.digest() == expected.digest()
            for place, row in zip(assign_rows(step.rows, 2)[rank], rows, strict=True):
                assert_same_row(row, all_rows[place])


@pytest.mark.parametrize("number", [1, 4])
def test_an_undecodable_sample_becomes_a_placeholder_and_shifts_nothing(
    number: int, make_config: Make, tokenizer: Tokenizer, clip: bytes, tmp_path: Path
) -> None:
    """The picture's header is whole, so it is indexed and planned as ever; the clip breaks after indexing."""
    samples = make_samples(20, clip)
    good, bad = tmp_path / "good" / "mixed", tmp_path / "bad" / "mixed"
    kind, data = samples[number].media[0]
    broken = data[:60] + bytes(len(data) - 60) if kind == "png" else bytes(len(data))
    for folder, member in ((good, data), (bad, broken)):
        changed = dict(samples[number].media) | {0: (kind, member)}
        samples[number] = RawSample(key=samples[number].key, content=samples[number].content, media=changed)
        write_shards(folder, "mixed", samples, samples_per_shard=8)
        if folder == good or kind == "png":
            build_index(folder, tokenizer)
    if kind == "mp4":  # with a CRC to match, else it would be an environment fault
        copy_index_with_new_crc(good, bad, number)
    expected, found = (read_steps(make_config(folder), tokenizer, 4) for folder in (good, bad))
    seen = 0
    for (step, rows, _), (other, placed, _) in zip(expected, found, strict=True):
        assert step == other
        for one, two in zip(rows, placed, strict=True):
            starts = np.concatenate([[0], np.cumsum(one.segment_lengths)])
            masked, patch = one.targets.copy(), one.patches.copy()
            for place in np.flatnonzero(one.sample_ids == number):
                seen += 1
                masked[starts[place] : starts[place + 1]] = IGNORE
                inside = (one.visual_index >= starts[place]) & (one.visual_index < starts[place + 1])
                patch[np.repeat(inside, 4)] = 0
            assert np.array_equal(two.targets, masked) and np.array_equal(two.patches, patch)
            for name in ("tokens", "positions", "segment_lengths", "grids", "visual_index", "sample_ids"):
                assert np.array_equal(getattr(one, name), getattr(two, name))
    records = found[-1][2]
    assert seen == len(records) > 0
    assert records[0]["key"] == f"sample{number:04d}" and records[0]["sample_id"] == number
    assert "cannot be decoded" in records[0]["reason"] and "mixed-000000.tar[" in records[0]["where"]
    start, end = map(int, records[0]["where"].partition("[")[2].rstrip("]").split(":"))
    stored = (bad / "mixed-000000.tar").read_bytes()[start:end]
    assert records[0]["crc32c"] == f"{google_crc32c.value(stored):08x}"


def copy_index_with_new_crc(good: Path, bad: Path, number: int) -> None:
    from data.index.file import COLUMNS, ShardInfo, write_index

    index = open_index(good)
    columns = {name: index.columns[name].tolist() for name in COLUMNS}
    start, length = columns["offset"][number], columns["nbytes"][number]
    data = (bad / "mixed-000000.tar").read_bytes()[start : start + length]
    columns["crc32c"][number] = google_crc32c.value(data)
    meta = {key: index.meta[key] for key in index.meta if key not in ("version", "shards", "columns")}
    write_index(bad / "index", meta, [ShardInfo(**shard) for shard in index.meta["shards"]], columns)


def test_a_flipped_bit_in_a_shard_stops_the_run(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    folder = make_source()
    config = make_config(folder)
    plan, reader = open_run(config, tokenizer)
    shard = folder / "mixed-000001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    loader = Loader(config, plan, InThread(reader), 0, 1, Cursor(), lambda _: None)
    with pytest.raises(ShardFault, match=r"mixed-000001\.tar.*CRC32C"):
        for _ in range(6):
            loader.next_step()
    with pytest.raises(ShardFault):
        loader.next_step()
    loader.close()


def test_a_stale_index_is_refused_by_name(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    folder = make_source(clips=False)
    with open(folder / "mixed-000000.tar", "ab") as shard:
        shard.write(bytes(512))
    with pytest.raises(MismatchError, match=r"source 'mixed' at .*mixed-000000.tar has"):
        build_reader(make_config(folder), tokenizer)


def test_closing_is_quick_and_ends_the_stream(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    config = make_config(make_source(clips=False), prefetch_steps=1)
    plan, reader = open_run(config, tokenizer)
    loader = Loader(config, plan, InThread(reader), 0, 1, Cursor(), lambda _: None)
    loader.next_step()
    start = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - start < 60 and not loader._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next_step()


def test_ranks_that_do_not_fit_are_refused(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    config = make_config(make_source(clips=False))
    plan, reader = open_run(config, tokenizer)
    for rank, size in ((1, 1), (0, 5), (-1, 2)):
        with pytest.raises(ValueError, match="rows_per_step 4"):
            Loader(config, plan, InThread(reader), rank, size, Cursor(), lambda _: None)


def test_runs_of_samples_are_read_by_one_request(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    folder = make_source(clips=False)
    alone, in_runs = (
        requests_a_sample(make_config(folder, run_length=length, tokens_per_row=1600, patches_per_row=4000), tokenizer)
        for length in (1, 4)
    )
    assert in_runs < 0.5 * alone <= 0.5


def requests_a_sample(config: DataConfig, tokenizer: Tokenizer) -> float:
    """Of a step, whose rows hold what the samples hold when they are read one by one."""
    plan, reader = open_run(config, tokenizer)
    asked = 0
    for row in plan.step(Cursor()).rows:
        packed, _ = reader.read(row)
        asked += len(row.samples)
        for number, start, length in zip(
            packed.sample_ids.tolist(),
            (packed.segment_lengths.cumsum() - packed.segment_lengths).tolist(),
            packed.segment_lengths.tolist(),
            strict=True,
        ):
            index = open_indexes(config)[0]
            alone = encode_sample(
                index.read_raw(number).content, index.media_sizes(number), tokenizer, config.image, config.video
            )
            assert packed.tokens[start : start + length].tolist() == alone.tokens.tolist()
    requests = reader.stats().store.requests
    reader.close()
    return requests / asked


def test_a_flipped_bit_in_a_run_is_fetched_again_for_its_sample_alone(
    make_source: Make, make_config: Make, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(make_source(clips=False))
    count = index.run_from(0, 4)
    whole = [index.read_raw(i) for i in range(count)]
    read, ranges = index.store.read_range, []

    def flip_once(name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        ranges.append(length)
        data = bytearray(read(name, offset, length, etag))
        if len(ranges) == 1:
            data[int(index.columns["nbytes"][0]) + 600] ^= 1
        return bytes(data)

    monkeypatch.setattr(index.store, "read_range", flip_once)
    assert count == 4 and index.read_run(0, count) == whole
    assert ranges == [int(index.columns["nbytes"][:4].sum()), int(index.columns["nbytes"][1])]
    assert index.refetched == 1
    ranges.clear()  # the next read is flipped too, in a sample read by itself
    nbytes = index.columns["nbytes"]
    alone = next(i for i in range(len(index)) if nbytes[i] > nbytes[0] + 600)
    assert index.read_raw(alone).key and len(ranges) == 2 and index.refetched == 2
