"""Measurements of decoding and of the decode cache, over the real code in processes of their own."""

import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data.config import ImageConfig, VideoConfig
from data.errors import SampleError
from data.loading.media import PatchReader
from data.types import MediaSize, RawSample
from data.visual import decode_child
from data.visual.cache_file import HEADER_BYTES, Use
from data.visual.decode import ClipDecoder, ClipRequest
from data.visual.decode_cache import DecodeCache, frame_key
from tests.data.cache_workers import FILE_BYTES, frames_of, key_of
from tests.data.changed_child import before_each_answer, changed_child
from tests.data.clips import FRAMES, HEIGHT, WIDTH, encode_scene, numbered_clips, read_number

IMAGE = ImageConfig(min_pixels=28 * 28, max_pixels=112 * 112)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="triptych-video-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def video_config(folder: Path | None, **changes: Any) -> VideoConfig:
    """Small frames, many of them."""
    sizes = {"min_pixels": 28 * 28, "max_pixels": 112 * 112, "fps": 8.0}
    return VideoConfig(cache_dir=None if folder is None else str(folder), **{**sizes, **changes})


def _sample(data: bytes) -> tuple[RawSample, MediaSize]:
    size = MediaSize(kind="video", height=HEIGHT, width=WIDTH, frames=FRAMES, fps=30.0)
    return RawSample(key="clip", content={}, media={0: ("mp4", data)}), size


def warm_share(height: int, width: int) -> tuple[float, float]:
    """(seconds of a warm read over those of decoding, ms of a warm read): 32 of 300 frames of 720p, medians, in turn.

    A warm read is the key of the clip's bytes, the frames from disk, and their checksum.
    """
    request = ClipRequest(
        data=encode_scene(300, 720, 1280), indices=np.linspace(0, 299, 32).astype(int), height=height, width=width
    )
    decoder = ClipDecoder(120.0)
    key = frame_key(request.digest, decoder.name)
    cold, warm = [], []
    with scratch() as folder:
        cache = DecodeCache(folder, 1 << 30)
        for _ in range(3):
            started = time.perf_counter()
            decoded = decoder.decode(request, "known")
            cold.append(time.perf_counter() - started)
            cache.put(key, decoded.frames, decoded.decoder)
            started = time.perf_counter()
            found = cache.get(frame_key(request.digest, decoder.name))
            warm.append(time.perf_counter() - started)
            assert found is not None and np.array_equal(found, decoded.frames)
    decoder.close()
    return median(warm) / median(cold), 1000 * median(warm)


def differing_bits() -> tuple[int, int]:
    """(patches with another bit than without a cache, all): three ways to choose frames and sizes over one cache, cold
    and warm, for all numbered clips."""
    wrong = total = 0
    ways: list[dict[str, Any]] = [{}, {"fps": 4.0}, {"max_pixels": 56 * 56}]
    with scratch() as folder:
        for changes in ways:
            with _reader(video_config(None, **changes)) as plain, _reader(video_config(folder, **changes)) as cached:
                for clip in numbered_clips().values():
                    raw, size = _sample(clip.data)
                    expected = plain.read(raw, (0,), [size])
                    for _ in ("cold", "warm"):
                        total += expected.size
                        try:
                            wrong += int((cached.read(raw, (0,), [size]) != expected).sum())
                        except AssertionError:  # frames of another number or size
                            wrong += expected.size
    return wrong, total


@contextmanager
def _reader(video: VideoConfig) -> Iterator[PatchReader]:
    reader = PatchReader(IMAGE, video)
    try:
        yield reader
    finally:
        reader.close()


def wrong_frames() -> tuple[int, int, int]:
    """(frames whose number is not that asked for, frames that two decoders give differently, frames asked for)."""
    decoder = ClipDecoder(30.0)
    wrong = differ = total = 0
    for clip in numbered_clips().values():
        indices = np.unique(np.linspace(0, FRAMES - 1, 17).round().astype(int))
        found = decoder.decode(ClipRequest(data=clip.data, indices=indices, height=HEIGHT, width=WIDTH))
        wrong += sum(read_number(frame) != index for frame, index in zip(found.frames, indices, strict=True))
        peers = decode_child.PyAvReader(clip.data).frames(indices.tolist())
        other = decode_child.resize_frames(peers, HEIGHT, WIDTH)
        differ += int((np.abs(found.frames.astype(int) - other).max(axis=(1, 2, 3)) > 2).sum())
        total += len(indices)
    decoder.close()
    return wrong, differ, total


def hit_shares(items: int, room: int, rounds: int) -> tuple[float, float, float]:
    """(with the plan, without, the best there is): shares of reads found, of `items` in turn, `room` of them kept."""
    found = []
    for planned in (True, False):
        with scratch() as folder:
            cache = DecodeCache(folder, room * FILE_BYTES)
            hits = 0
            for step in range(items * rounds):
                use = Use(run="run", step=step, next_step=step + items) if planned else None
                number = step % items
                if cache.get(key_of(number), use) is not None:
                    hits += 1
                else:
                    cache.put(key_of(number), frames_of(number), "decord", use)
            found.append(hits / (items * rounds))
    return found[0], found[1], _best_share(items, room, rounds)


def _best_share(items: int, room: int, rounds: int) -> float:
    """Of Belady's rule, which may also leave the newest out, played with numbers alone."""
    held: dict[int, int] = {}
    hits = 0
    for step in range(items * rounds):
        number = step % items
        hits += number in held
        held[number] = step + items
        if len(held) > room:
            del held[max(held, key=lambda name: held[name])]
    return hits / (items * rounds)


def believed_damage(files: int) -> tuple[int, int]:
    """(frames given that are not those stored, files damaged): one bit flipped, or cut in place, anywhere in each."""
    random = np.random.default_rng(0)
    wrong = 0
    with scratch() as folder:
        cache = DecodeCache(folder, (files + 2) * FILE_BYTES)
        for number in range(files):
            cache.put(key_of(number), frames_of(number), "decord")
            (path,) = folder.glob(f"*/{key_of(number)}.clip")
            with open(path, "r+b") as file:
                place = int(random.integers(HEADER_BYTES if number % 2 else 0, FILE_BYTES))
                if number % 5 == 0:
                    file.truncate(place)
                    file.truncate(FILE_BYTES)
                else:
                    file.seek(place)
                    byte = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([byte ^ 1 << int(random.integers(8))]))
            found = cache.get(key_of(number))
            wrong += found is not None and not np.array_equal(found, frames_of(number))
    return wrong, files


def full_disk(reads: int) -> tuple[int, int]:
    """(reads that gave no frames, reads that gave wrong ones) through a cache whose disk takes no file of a clip."""
    raw, size = _sample(numbered_clips()["mp4"].data)
    lost = wrong = 0
    with scratch() as folder, _reader(video_config(None)) as plain, _reader(video_config(folder)) as cached:
        expected = plain.read(raw, (0,), [size])
        allocate = os.posix_fallocate

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        os.posix_fallocate = full
        try:
            for _ in range(reads):
                try:
                    wrong += not np.array_equal(cached.read(raw, (0,), [size]), expected)
                except OSError:
                    lost += 1
        finally:
            os.posix_fallocate = allocate
    return lost, wrong


def lost_foreign() -> tuple[int, int]:
    """(foreign files gone or changed, all): beside the cache's own, under names like its own, and behind links."""
    with scratch() as top:
        folder, elsewhere = top / "cache", top / "elsewhere"
        room = DecodeCache(folder, 3 * FILE_BYTES)
        elsewhere.mkdir()
        own = frames_of(0).tobytes()
        linked = next(number for number in range(50, 999) if key_of(number)[:2] not in _folders(range(12)))
        texts = {
            folder / "notes.clip": own,
            folder / key_of(0)[:2] / "notes.clip": own,
            folder / key_of(0)[:2] / ".notes.tmp": own,
            folder / key_of(1)[:2] / f"{key_of(1)}.clip": own,
            elsewhere / "target": b"TRIPCLIP" + own,
            elsewhere / f"{key_of(linked)}.clip": b"TRIPCLIP" + own,
        }
        for path, text in texts.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
        (folder / key_of(2)[:2]).mkdir(exist_ok=True)
        (folder / key_of(2)[:2] / f"{key_of(2)}.clip").symlink_to(elsewhere / "target")
        (folder / key_of(linked)[:2]).symlink_to(elsewhere)
        for number in [*range(12), linked]:
            if room.get(key_of(number)) is None:
                room.put(key_of(number), frames_of(number), "decord")
        DecodeCache(folder, FILE_BYTES)
        return sum(not path.exists() or path.read_bytes() != text for path, text in texts.items()), len(texts)


def _folders(numbers: Sequence[int]) -> set[str]:
    return {key_of(number)[:2] for number in numbers}


HANGING = struct.pack(">I4s8s", 16, b"free", b"HANGING!")
HANG_BODY = """import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if decoder == 'decord' and message[1].endswith(b'HANGING!'): time.sleep(600)"""
DEADLINE = 2.0


def hangs(clips: int, processes: int, epochs: int) -> tuple[int, int, int, float]:
    """(clips whose hang cost more than one deadline over all reads, samples without frames, samples with others'
    frames, the dearest clip in deadlines). decord hangs on each clip until it is killed; PyAV does not."""
    base = numbered_clips()["mp4"].data
    # A box that says nothing makes each clip another one.
    data = [base + struct.pack(">I4sQ", 16, b"free", number) + HANGING for number in range(clips)]
    peers = list(decode_child.PyAvReader(base).frames(list(range(FRAMES))))
    spent = [0.0] * clips
    lost = wrong = 0
    with changed_child(*before_each_answer(HANG_BODY)), scratch() as folder:
        for _ in range(epochs * processes):  # a process of its own each time: nothing is known but from the folder
            decoder = ClipDecoder(DEADLINE, verdicts=folder)
            names = decoder.name, decoder._name("pyav")  # what a start costs is not the clip's
            assert names[0] != names[1]
            for number in range(clips):
                indices = np.array([number, number + 40])
                request = ClipRequest(data=data[number], indices=indices, height=HEIGHT, width=WIDTH)
                started = time.monotonic()
                try:
                    found = decoder.decode(request).frames
                    due = decode_child.resize_frames([peers[index] for index in indices], HEIGHT, WIDTH)
                    wrong += not np.array_equal(found, due)
                except SampleError:
                    lost += 1
                spent[number] += time.monotonic() - started
                decoder._running("decord")
            decoder.close()
    dearest = max(spent) / DEADLINE
    return sum(seconds > DEADLINE for seconds in spent), lost, wrong, dearest
