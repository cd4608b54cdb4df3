"""Rows read by processes: the same rows, whoever dies on the way."""

import io
import itertools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from data.config import IGNORE, DataConfig
from data.encoding.tokenizer import Tokenizer
from data.errors import BadSamples
from data.formats.shards import write_shards
from data.index.build import build_index, open_index
from data.loading.loader import Loader
from data.loading.pool import InThread, Workers
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan
from data.types import RawSample
from tests.data.conftest import make_samples
from tests.data.test_loader import assert_same_row

Make = Callable[..., Any]
STEPS = 3


def steps(config: DataConfig, tokenizer: Tokenizer, readers: Any, during: Callable[[], None] = lambda: None) -> Any:
    """(rows, records) of the first steps."""
    records: list[dict] = []
    loader = Loader(config, Plan(config, open_indexes(config)), readers, 0, 1, Cursor(), records.append)
    try:
        during()
        return [loader.next_step()[1] for _ in range(STEPS)], records
    finally:
        loader.close()


def in_thread(config: DataConfig, tokenizer: Tokenizer) -> Any:
    return steps(config, tokenizer, InThread(build_reader(config, tokenizer)))


def assert_same(found: Any, expected: Any) -> None:
    for one, two in zip(found, expected, strict=True):
        for row, other in zip(one, two, strict=True):
            assert_same_row(row, other)


def children() -> list[int]:
    own = str(os.getpid())
    stats = [(path, path.read_text()) for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [int(path.parent.name) for path, stat in stats if stat.rpartition(")")[2].split()[1] == own]


@pytest.mark.timeout(250)
def test_rows_do_not_depend_on_who_reads_them_or_who_is_killed(
    make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    config = make_config(make_source(), workers=2)
    expected, _ = in_thread(config, tokenizer)
    before = set(children())
    workers = Workers(config)
    first = workers._workers[0]

    def kill_one() -> None:
        while first.task is None:
            time.sleep(0.01)
        first.process.kill()

    found, records = steps(config, tokenizer, workers, kill_one)
    assert workers.stats().workers_replaced == 1
    assert_same(found, expected)
    assert records == [] and set(children()) <= before
    assert found[0][0].patches.flags.writeable  # torch would warn


DEADLY = "deadly"
CRASH = f"""
import os, signal
from PIL import Image
opened = Image.open
def open_or_die(file, *arguments, **named):
    if {DEADLY.encode()!r} in file.getvalue():
        os.kill(os.getpid(), signal.SIGSEGV)
    return opened(file, *arguments, **named)
Image.open = open_or_die
"""
"""A library that crashes over one picture, put where every new interpreter looks."""


@pytest.mark.timeout(250)
def test_a_sample_that_ends_two_workers_becomes_a_placeholder(
    make_config: Make, tokenizer: Tokenizer, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample for sample in make_samples(20, clip) if "mp4" not in {kind for kind, _ in sample.media.values()}]
    victim = next(number for number, sample in enumerate(samples) if sample.media)
    with io.BytesIO(samples[victim].media[0][1]) as data, io.BytesIO() as out:
        words = PngImagePlugin.PngInfo()
        words.add_text("Comment", DEADLY)
        Image.open(data).save(out, "png", pnginfo=words)
        samples[victim].media[0] = ("png", out.getvalue())
    folder = tmp_path / "mixed"
    write_shards(folder, "mixed", samples, samples_per_shard=8)
    build_index(folder, tokenizer)
    config = make_config(folder, workers=2)
    expected, _ = in_thread(config, tokenizer)
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "crash"))
    workers = Workers(config)
    found, records = steps(config, tokenizer, workers)
    met = 0
    for row, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        starts = [0, *row.segment_lengths.cumsum().tolist()]
        assert row.tokens.tolist() == other.tokens.tolist() and row.sample_ids.tolist() == other.sample_ids.tolist()
        for number, start, end in zip(row.sample_ids.tolist(), starts, starts[1:], strict=False):
            met += number == victim
            due = IGNORE if number == victim else other.targets[start:end]
            assert (row.targets[start:end] == due).all()
    # Two workers may have been at it at once.
    assert met == len(records) > 0 and 2 <= workers.stats().workers_replaced <= 3
    assert records[0]["reason"] == "a worker that read it was ended by signal 11, 2 times"


@pytest.mark.timeout(250)
def test_workers_end_with_a_killed_trainer(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    config = make_config(make_source(clips=False), workers=2)
    script = (
        "import pickle, sys, time; from data.loading.pool import Workers; "
        "workers = Workers(pickle.load(open(sys.argv[1], 'rb'))); workers.collect(120.0); "
        "print(*(w.process.pid for w in workers._workers), flush=True); time.sleep(600)"
    )
    saved = Path(config.sources[0].path) / "config.pickle"
    saved.write_bytes(pickle.dumps(config))
    trainer = subprocess.Popen([sys.executable, "-c", script, str(saved)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.timeout(250)
def test_what_keeps_workers_from_starting_is_told(make_source: Make, make_config: Make, tokenizer: Tokenizer) -> None:
    folder = make_source(clips=False)
    config = make_config(folder, workers=1)
    plan = Plan(config, open_indexes(config))
    (folder / "index" / "offset.npy").unlink()
    loader = Loader(config, plan, Workers(config), 0, 1, Cursor(), lambda _: None)
    with pytest.raises(ValueError, match=r"offset\.npy is missing or damaged"):
        loader.next_step()
    loader.close()


def broken_samples(clip: bytes) -> list[RawSample]:
    """Every picture's header is whole, and nothing after it."""
    found = []
    for sample in make_samples(20, clip):
        media = {n: (kind, data[:60] + bytes(len(data) - 60)) for n, (kind, data) in sample.media.items()}
        found.append(RawSample(key=sample.key, content=sample.content, media=media) if media else sample)
    return [sample for sample in found if "mp4" not in {kind for kind, _ in sample.media.values()}]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"bad_in_row": 1, "bad_share": 1.0}, r"2 samples in a row are bad, where .* data\.bad_in_row=1; the last is"),
        ({"bad_in_row": 1000, "bad_share": 0.1}, r"\d+ of \d+ samples are bad, .*raise data\.bad_share"),
    ],
)
def test_more_bad_samples_than_allowed_end_the_run(
    limits: dict[str, Any], message: str, make_config: Make, tokenizer: Tokenizer, clip: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    write_shards(folder, "mixed", broken_samples(clip), samples_per_shard=8)
    build_index(folder, tokenizer)
    assert len(open_index(folder)) > 3
    config = make_config(folder, workers=0, **limits)
    loader = Loader(
        config,
        Plan(config, open_indexes(config)),
        InThread(build_reader(config, tokenizer)),
        0,
        1,
        Cursor(),
        lambda _: None,
    )
    with pytest.raises(BadSamples, match=message):
        for _ in range(200):
            loader.next_step()
    with pytest.raises(BadSamples):
        loader.next_step()
    loader.close()
