"""Measurements of what goes wrong: processes killed over a cache, readers killed over a decoder, media that are bad."""

import io
import os
import struct
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.config import IGNORE, DataConfig, SourceConfig, VideoConfig
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.loading.media import PatchReader
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan
from data.types import MediaSize, PackedRow, RawSample
from data.visual import decode_child
from data.visual.cache_file import HEADER_BYTES
from data.visual.decode_cache import DecodeCache
from tests.data.cache_workers import kill_and_replace, killed_writer, planted_hammer, used_bytes
from tests.data.changed_child import before_each_answer, changed_child
from tests.data.clips import numbered_clips
from tests.data.conftest import train_tokenizer
from tests.prove.data_video_measures import IMAGE, scratch, video_config

HANGS_AND_SAYS = "open(os.environ['TMPDIR'] + '/hangs', 'w')\ntime.sleep(600)"
ITEM_BYTES = HEADER_BYTES + 16 * 112 * 112 * 3


def crowd(plant: str | None, seconds: float) -> tuple[int, int, int, int]:
    """(processes given a wrong byte, bytes above the bound, files left unfinished after the next start, processes
    killed) of eight over a cache of ten items, killed at random."""
    bound = 10 * ITEM_BYTES
    with scratch() as folder:
        killed, most, wrong = kill_and_replace(folder, bound, 8, seconds, partial(planted_hammer, plant))
        # One more that is killed for certain in the middle of a write.
        process = get_context("spawn").Process(target=killed_writer, args=(folder, ITEM_BYTES))
        process.start()
        process.join(60)
        assert process.exitcode == -9 and list(folder.glob("*/.*.tmp"))
        cache = DecodeCache(folder, bound)
        left = len(list(folder.glob("*/.*")))
        wrong += sum(cache.get(path.stem) is None for path in folder.glob("*/*.clip"))
        return wrong, max(0, most - bound), left, killed + 1


def killed_reader() -> tuple[int, int]:
    """(processes left, files left) after SIGKILL of a process whose decoder hangs: 3 s later, in the cache
    after its next start, in the folder for temporary files, and in /dev/shm."""
    with scratch() as folder, changed_child(*before_each_answer(HANGS_AND_SAYS)):
        (folder / "tmp").mkdir()
        pids, end = get_context("spawn").Pipe(duplex=False)  # a queue would have semaphores in /dev/shm itself
        arguments = (folder / "cache", folder / "tmp", decode_child.__file__, end)
        process = get_context("spawn").Process(target=_hanging_reader, args=arguments)
        process.start()
        assert process.pid is not None
        assert pids.poll(60)
        child = pids.recv()
        ends = time.monotonic() + 60
        while not (folder / "tmp" / "hangs").exists():
            assert time.monotonic() < ends
            time.sleep(0.05)
        (folder / "tmp" / "hangs").unlink()
        shared = _in_shared_memory(process.pid) + _in_shared_memory(child)
        process.kill()
        process.join(10)
        time.sleep(3)
        DecodeCache(folder / "cache", 1 << 20)
        files = len(list((folder / "tmp").iterdir())) + used_bytes(folder / "cache")
        alive = _alive(child)
        if alive:
            os.kill(child, 9)
        return int(alive), files + sum(path.exists() for path in shared)


def _hanging_reader(folder: Path, temporary: Path, script: str, pids: Any) -> None:
    os.environ["TMPDIR"] = str(temporary)
    decode_child.__file__ = script
    reader = PatchReader(IMAGE, video_config(folder, timeout_seconds=600.0))
    assert reader._decoder.name
    pids.send(reader._decoder._children["decord"]._child.pid)
    raw = RawSample(key="k", content={}, media={0: ("mp4", numbered_clips()["mp4"].data)})
    reader.read(raw, (0,), [MediaSize(kind="video", height=96, width=128, frames=90, fps=30.0)])


def _in_shared_memory(pid: int) -> list[Path]:
    """Files in /dev/shm that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [Path(line.split()[-1]) for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")]


def _alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def bad_media() -> tuple[int, int, int, int, int, int]:
    """(samples lost, samples repeated, bad samples without a record or good ones with one, supervised tokens or pixels
    in bad ones, bad ones in which nobody looked for them, hopeless clips that the index took) over one epoch of
    pictures and clips of which some cannot be read."""
    good, bad, hopeless = _media()
    samples = [
        RawSample(key=name, content=_content(data), media={0: ("bin", data)})
        for name, data in sorted({**good, **bad, **hopeless}.items())
    ]
    with scratch() as folder:
        config = _config(folder, len(good) + len(bad))
        write_shards(folder / "media", "media", samples, samples_per_shard=4)
        index = build_index(folder / "media", load_tokenizer(config.tokenizer))
        taken = len(hopeless) - len(index.meta["refused"])
        indexes = open_indexes(config)
        plan = Plan(config, indexes)
        reader = build_reader(config, load_tokenizer(config.tokenizer), indexes)
        seen: list[int] = []
        records: list[str] = []
        leaks = 0
        unchecked = set(bad)
        cursor = Cursor()
        while cursor.window == 0:
            step = plan.step(cursor)
            cursor = step.next_cursor
            for planned in step.rows:
                row, found = reader.read(planned)
                records += [record["key"] for record in found]
                seen += row.sample_ids.tolist()
                for record in found:
                    leaks += _left_of(row, record["sample_id"])
                    unchecked.discard(record["key"])
        reader.close()
        lost = len(index) - len(set(seen))
        return lost, len(seen) - len(set(seen)), len(set(records) ^ set(bad)), leaks, len(unchecked), taken


def _left_of(row: PackedRow, number: int) -> int:
    """Supervised tokens of a sample in its row, and values of its patches that are not 0."""
    (place,) = np.flatnonzero(row.sample_ids == number)
    ends = row.segment_lengths.cumsum()
    start, end = ends[place] - row.segment_lengths[place], ends[place]
    inside = (row.visual_index >= start) & (row.visual_index < end)
    pixels = row.patches[np.repeat(inside, 4)]  # of each visual token
    assert pixels.size, "a picture or clip without patches"
    return int((row.targets[start:end] != IGNORE).sum()) + int((pixels != 0).sum())


def _config(folder: Path, samples: int) -> DataConfig:
    """One row a sample, one window an epoch."""
    return DataConfig(
        tokenizer=str(train_tokenizer(folder / "tokenizer")),
        sources=(SourceConfig(name="media", path=str(folder / "media")),),
        tokens_per_row=1300,
        patches_per_row=5000,
        rows_per_step=1,
        window=samples,
        seed=3,
        image=IMAGE,
        video=VideoConfig(min_pixels=28 * 28, max_pixels=112 * 112, fps=8.0, timeout_seconds=4.0),
    )


def _content(data: bytes) -> dict[str, Any]:
    kind = "image" if data[:3] in (b"\xff\xd8\xff", b"\x89PN") else "video"
    return {"source": "media", "parts": [{"type": kind, "media": 0}, {"type": "text", "text": " digit moves left"}]}


def _media() -> tuple[dict[str, bytes], dict[str, bytes], dict[str, bytes]]:
    """(good, bad but with a whole header, hopeless), by name."""
    clips = {name: clip.data for name, clip in numbered_clips().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    pictures = {}
    for kind in ("JPEG", "PNG"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        pictures[kind] = stream.getvalue()
    mp4 = clips["mp4"]
    frames = mp4.index(b"mdat") + 4
    cut = frames + (mp4.index(b"moov") - frames) // 2
    counted = bytearray(mp4)
    struct.pack_into(">I", counted, counted.index(b"stts") + 12, 131)
    good = {"webm": clips["webm, VP8"], "hevc": clips["mov, HEVC"], "jpeg": pictures["JPEG"], "png": pictures["PNG"]}
    good |= {"mp4": mp4, "over-reports": bytes(counted)}
    bad = {
        "half of a jpeg": pictures["JPEG"][: len(pictures["JPEG"]) // 2],
        "png of zeros": pictures["PNG"][:60].ljust(len(pictures["PNG"]), b"\0"),
        "clip of zeros": mp4[:cut] + bytes(mp4.index(b"moov") - 4 - cut) + mp4[mp4.index(b"moov") - 4 :],
    }
    hopeless = {"empty": b"", "garbage": b"not a clip " * 99, "no moov": mp4.replace(b"moov", b"skip")}
    return good, bad, hopeless
