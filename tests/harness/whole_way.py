"""A run whose data come from object storage that fails in every way, against the same run from a local folder."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.encoding.tokenizer import load_tokenizer
from data.index.build import build_index
from data.store.config import LimiterConfig, OssConfig
from data.types import RawSample
from data.visual.decode_child import DecordReader, PyAvReader
from parallel.config import ParallelConfig
from tests.data.conftest import clip_bytes, make_samples
from tests.harness.delivered import Delivered, compare_delivered, due_rows
from tests.harness.lives import Nursery
from tests.harness.oss_cases import ALWAYS
from tests.harness.oss_service import OssService, oss_service
from tests.harness.run_faults import well
from tests.harness.runs import Recipe, RunDifference, compare_runs, launch, make_data, read_recipe, write_recipe
from tests.harness.saboteur import Orders, watch_life
from train.config import RunConfig
from train.resolve import compose, to_yaml

SAMPLES = 200
"""A fifth of them with a clip of its own; it takes nine steps until one is read again, and comes from the cache."""
FRAMES = 12
REPLICAS = 2
RUNS = ("folder", "cold", "warm")
# Byte 1000 of a sample lies in its picture or clip, or behind the end of its text: bytes that are another without a
# sample that could not be read at all.
FAULTS = (
    {"kind": "truncate", "at": 700, "skip": 6, "every": 9, "times": ALWAYS},
    {"kind": "flip", "at": 1000, "skip": 9, "every": 14, "times": ALWAYS, "once": True},
)
HUNG = "passed its deadline"
STRUCK = (
    "workers killed",
    "workers replaced",
    "decoders stopped",
    "clips whose decoder hung",
    "requests refused by the throttle",
    "bodies cut",
    "bodies resumed",
    "bodies flipped",
    "clips decoded, cold",
    "clips from the cache, warm",
)


@dataclass(frozen=True, kw_only=True)
class WholeWay:
    """The run from a folder, that with a cold and that with a warm decode cache, by these names."""

    delivered: dict[str, Delivered]
    differences: dict[str, RunDifference]
    """To the run from a folder."""
    quarantined: int
    """Records of samples that could not be used, over all runs."""
    struck: dict[str, int]
    """How often what was injected struck: each has to be more than none."""


def whole_way(
    folder: Path,
    steps: int,
    parallel: ParallelConfig,
    *,
    processes: int,
    plant: str | None = None,
    runs: Sequence[str] = RUNS,
    nursery: Nursery | None = None,
) -> WholeWay:
    """Train stage 2 three times: from a folder, from `oss://` with a cold decode cache, and with a warm one.

    What each run is given is compared with rows that are read here.

    Args:
        parallel: has to leave two replicas, as a worker of one is killed and a decoder of the other hangs.
        plant: a defect of all trainers and workers.
        runs: the first two of RUNS, or all.
        nursery: forks the runs, which else the launch script starts.
    """
    data = make_data(folder / "data", samples=own_samples())
    recipe = write_recipe(folder / "recipe", data, "stage2", parallel, processes)
    run = read_recipe(recipe)
    due = due_rows(run.data, steps, REPLICAS)
    common = (
        f"stage.steps={steps}",
        "data.workers=1",
        "data.video.timeout_seconds=5",
        "parallel.timeout_seconds=600",  # four trainers, workers and decoders start on what may be two busy cores
    )
    start = partial(_start, recipe, folder, plant, nursery)
    start("folder", *common)
    with oss_service() as (service, limits):
        to_oss(recipe, run, data, folder, service, limits)
        service.throttle(requests=60, burst_seconds=0.05)
        service.plan(*FAULTS)
        for name in runs[1:]:
            start(name, *common, f"data.video.cache_dir={folder / 'cache'}")
        counts = service.counts
    quarantines = [path for name in runs for path in (folder / name).glob("quarantine_*.jsonl")]
    return WholeWay(
        delivered={name: compare_delivered(_seen(folder, name), due) for name in runs},
        differences={name: compare_runs(folder / "folder", folder / name) for name in runs[1:]},
        quarantined=sum(len(path.read_text().splitlines()) for path in quarantines),
        struck=_struck(folder, runs, counts),
    )


def own_samples() -> list[RawSample]:
    """Samples of which no two have the same bytes or pixels, every second picture without a checksum of its own.

    A clip whose decoder hangs falls to the other one, as it does for users, and the two may differ by a level or two in
    natural pixels. So frames are of one grey each, which both decoders give alike; that is looked at here.
    """
    samples = make_samples(SAMPLES, b"")
    clips = set()
    for number, sample in enumerate(samples):
        for member, (kind, payload) in sample.media.items():
            if kind == "mp4":
                sample.media[member] = kind, clip_bytes(FRAMES, shift=6 * (number // 5))
                clips.add(_agreed_frames(sample.media[member][1]))
            elif number % 2:
                bitmap = io.BytesIO()
                Image.open(io.BytesIO(payload)).save(bitmap, "BMP")
                sample.media[member] = "bmp", bitmap.getvalue()
    assert len(clips) == SAMPLES // 5, f"only {len(clips)} of {SAMPLES // 5} clips have frames of their own"
    return samples


def _agreed_frames(clip: bytes) -> bytes:
    one, other = (np.stack(list(reader(clip).frames(range(FRAMES)))) for reader in (DecordReader, PyAvReader))
    assert np.array_equal(one, other), "the decoders do not agree on a clip of one grey a frame"
    return one.tobytes()


def to_oss(recipe: Recipe, run: RunConfig, data: Path, folder: Path, service: OssService, limits: str) -> None:
    """Put the shards into a bucket, index them there, and have the recipe read them by that index, etags included."""
    oss = OssConfig(
        endpoint=service.endpoint,
        limiter=LimiterConfig(folder=limits, requests_per_second=400),
        first_backoff_seconds=0.01,
        longest_backoff_seconds=0.2,
    )
    address = service.put_folder(data / "mixed", "mixed", ".tar")
    index = build_index(address, load_tokenizer(data / "tokenizer"), output=folder / "index", oss=oss)
    assert len(index) == SAMPLES and all(shard.etag for shard in index.shards)
    (source,) = run.data.sources
    remote = replace(source, path=address, index=str(folder / "index"))
    recipe.path.write_text(to_yaml(replace(run, data=replace(run.data, sources=(remote,), oss=oss))))


def _start(
    recipe: Recipe, folder: Path, plant: str | None, nursery: Nursery | None, name: str, *overrides: str
) -> None:
    _seen(folder, name).mkdir()
    orders = Orders(folder=str(_seen(folder, name)), strike=name == "cold")
    if nursery is not None:
        overrides = (*overrides, f"run_dir={folder / name}")
        run = compose(recipe.name, overrides, folder=recipe.folder, world_size=recipe.processes)
        keys = {name: value for name, value in os.environ.items() if name.startswith("OSS_")}
        given = (orders, plant or "-", keys)
        well(nursery.live(run, recipe.processes, before=watch_life, given=given, plant=plant))
        return
    interpreter = f"-m tests.harness.saboteur '{orders.to_json()}' {plant or '-'}"
    launch(recipe, folder / name, *overrides, interpreter=interpreter, timeout=600.0)


def _struck(folder: Path, runs: Sequence[str], counts: dict[str, int]) -> dict[str, int]:
    """By what the run itself, the cache and the service have to say of it; metrics are those of the first replica."""
    metrics = [_last_line(folder / name / "metrics.jsonl") for name in runs[1:]]
    verdicts = [path.read_text() for path in (folder / "cache" / "verdicts").glob("*.json")]
    found = (
        int((_seen(folder, "cold") / "killed").exists()),
        int(metrics[0]["workers_replaced"]),
        int((_seen(folder, "cold") / "stopped").exists()),
        sum(HUNG in verdict for verdict in verdicts),
        counts.get("refused TotalQpsLimitExceeded", 0),
        counts.get("spoiled by truncate", 0),
        int(sum(line["store_resumed"] for line in metrics)),
        counts.get("spoiled by flip", 0),
        *(int(line[key]) for line, key in zip(metrics, ("cache_misses", "cache_hits"), strict=False)),
    )
    return dict(zip(STRUCK, found, strict=False))


def _last_line(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text().splitlines()[-1])


def _seen(folder: Path, name: str) -> Path:
    return folder / f"{name}_seen"
