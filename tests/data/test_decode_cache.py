"""The cache of decoded frames: what it gives is right, and the same as without it."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data.config import ImageConfig, VideoConfig
from data.encoding.encode import media_grid
from data.errors import SampleError
from data.loading.media import PatchReader
from data.types import MediaSize, RawSample
from data.visual.cache_file import HEADER_BYTES
from data.visual.decode import ClipDecoder, ClipRequest
from data.visual.decode_cache import CacheCounters, DecodeCache, frame_key
from data.visual.images import normalisation_table
from data.visual.video import video_grid
from tests.data.cache_workers import FILE_BYTES, frames_of, key_of, put, used_bytes
from tests.data.conftest import IMAGE, VIDEO, clip_bytes


def test_cache_gives_back_the_frames_to_anyone(tmp_path: Path) -> None:
    put(DecodeCache(tmp_path, 10 * FILE_BYTES), 0)
    other = DecodeCache(tmp_path, 10 * FILE_BYTES)
    found = other.get(key_of(0))
    assert found is not None and np.array_equal(found, frames_of(0))
    assert other.get(key_of(1)) is None
    assert other.counters == CacheCounters(hits=1, read_bytes=FILE_BYTES)


@pytest.mark.parametrize("place", [9, 30, 60, 165, HEADER_BYTES, FILE_BYTES - 1, "short", "empty", "zeros"])
def test_a_corrupt_or_short_file_is_a_miss_and_goes_away(place: int | str, tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    put(cache, 0)
    (path,) = tmp_path.glob("*/*.clip")
    data = bytearray(path.read_bytes())
    if isinstance(place, int):
        data[place] ^= 1
    else:
        data = {"short": data[:-1], "empty": bytearray(), "zeros": bytearray(len(data))}[place]
    path.write_bytes(data)
    assert cache.get(key_of(0)) is None
    assert not path.exists() and cache.counters.damaged == 1


def test_a_file_under_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    put(cache, 0)
    (path,) = tmp_path.glob("*/*.clip")
    other = cache._path(key_of(1))
    other.parent.mkdir(exist_ok=True)
    path.rename(other)
    assert cache.get(key_of(1)) is None


def test_a_file_cut_short_in_place_never_gives_frames(tmp_path: Path) -> None:
    """insitubatch #42: whoever has it mapped reads zeros, or dies. Here what is given was read and checked before."""
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    put(cache, 0)
    (path,) = tmp_path.glob("*/*.clip")
    found = cache.get(key_of(0))
    with open(path, "r+b") as file:
        file.truncate(HEADER_BYTES + 100)
        file.truncate(FILE_BYTES)  # of the right length again, with zeros
    assert found is not None and np.array_equal(found, frames_of(0))
    assert cache.get(key_of(0)) is None


def test_keys_name_all_that_decides_the_pixels() -> None:
    def key(data: bytes, indices: list[int], height: int, width: int, decoder: str) -> str:
        return frame_key(ClipRequest(data=data, indices=np.array(indices), height=height, width=width).digest, decoder)

    keys = {
        key(b"clip", [0, 1], 28, 56, "decord 0.6.0"),
        key(b"clap", [0, 1], 28, 56, "decord 0.6.0"),
        key(b"clip", [0, 2], 28, 56, "decord 0.6.0"),
        key(b"clip", [0, 1], 56, 28, "decord 0.6.0"),
        key(b"clip", [0, 1], 28, 56, "pyav"),
    }
    assert len(keys) == 5


SIZE = MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0)


def video(folder: Path | None, **changes: object) -> VideoConfig:
    fields = {"min_pixels": VIDEO.min_pixels, "max_pixels": VIDEO.max_pixels, "max_frames": 8, "cache_bytes": 10**7}
    return VideoConfig(cache_dir=None if folder is None else str(folder), **{**fields, **changes})  # type: ignore[arg-type]


def test_patches_are_the_same_with_and_without_the_cache(tmp_path: Path, clip: bytes) -> None:
    raw = RawSample(key="k", content={}, media={0: ("mp4", clip)})
    readers = [PatchReader(IMAGE, video(None)), PatchReader(IMAGE, video(tmp_path))]
    without, cold = (reader.read(raw, (0,), [SIZE]) for reader in readers)
    assert without.shape == (video_grid(12, 8.0, 48, 64, IMAGE, video(None)).num_patches, 1176)
    readers[1]._decoder.decode = lambda *_: pytest.fail("decoded again")  # type: ignore[method-assign,assignment]
    warm = readers[1].read(raw, (0,), [SIZE])
    assert np.array_equal(without, cold) and np.array_equal(without, warm)
    assert readers[1].counters == CacheCounters(
        hits=1, misses=1, stored=1, read_bytes=readers[1].counters.stored_bytes, stored_bytes=used_bytes(tmp_path)
    )
    assert readers[0].counters == CacheCounters()
    for reader in readers:
        reader.close()


def test_one_decodes_and_the_others_wait(tmp_path: Path, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = ClipDecoder.decode

    def slow(self: ClipDecoder, *arguments: object) -> object:
        decoded.append(1)
        while not sum(reader._cache.counters.waits for reader in readers):
            time.sleep(0.01)
        return decode(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipDecoder, "decode", slow)
    raw = RawSample(key="k", content={}, media={0: ("mp4", clip)})
    readers = [PatchReader(IMAGE, video(tmp_path)) for _ in range(4)]
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda reader=reader: found.append(reader.read(raw, (0,), [SIZE])))  # type: ignore[misc]
        for reader in readers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(decoded) == 1 and len(found) == 4 and all(np.array_equal(found[0], other) for other in found)
    total = CacheCounters()
    for reader in readers:
        total += reader.counters
        reader.close()
    assert (total.hits, total.misses, total.gave_up) == (3, 1, 0) and 1 <= total.waits <= 3 and total.wait_seconds > 0


def test_who_waits_too_long_decodes_alone(tmp_path: Path) -> None:
    cache, other = (DecodeCache(tmp_path, 10 * FILE_BYTES) for _ in range(2))
    with cache.flight(key_of(0), 1.0) as waited:
        assert not waited
        with other.flight(key_of(0), 0.1) as waited:
            assert waited
        assert (other.counters.waits, other.counters.gave_up) == (1, 1)
        with other.flight(key_of(1), 0.1) as waited:
            assert not waited, "another clip"
    with other.flight(key_of(0), 0.1) as waited:
        assert not waited


def test_a_second_opinion_is_found_in_the_cache_and_an_undecodable_clip_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_bytes().replace(b"avc1", b"avc9")  # a codec that nobody knows
    raw = RawSample(key="k", content={}, media={0: ("mp4", clip)})
    for again in (False, True):
        reader = PatchReader(IMAGE, video(tmp_path))
        with pytest.raises(SampleError, match=r"sample k, member 0: clip of \d+ bytes cannot be decoded: decord: "):
            if again:
                monkeypatch.setattr(ClipDecoder, "decode", lambda *_: pytest.fail("asked again"))
            reader.read(raw, (0,), [SIZE])
        reader.close()


def test_a_thinned_clip_is_read_as_it_was_planned(tmp_path: Path) -> None:
    """40 frames are wanted and 12 have room: the decoder, the cache's key and the patches all follow the plan."""
    image = ImageConfig(min_pixels=28 * 28)
    video = VideoConfig(fps=8.0, max_frames=None, max_tokens=24, cache_dir=str(tmp_path), timeout_seconds=20.0)
    clip = clip_bytes(frames=40)
    size = MediaSize(kind="video", height=48, width=64, frames=40, fps=8.0)
    grid = media_grid(size, image, video)
    assert grid.merged == (6, 2, 2)
    reader = PatchReader(image, video)
    patches = reader.read(RawSample(key="k", content={}, media={0: ("mp4", clip)}), (0,), [size])
    reader.close()
    assert patches.shape == (grid.num_patches, 1176)
    # Frame i has the grey 10 + i * 235 // 40; red of the first pixel of both frames of each temporal patch:
    table = normalisation_table(image)[0]
    red = patches.reshape(6, 16, 3, 2, 196)[:, 0, 0, :, 0].reshape(-1)
    seen = np.abs(red[:, None] - table[None]).argmin(axis=1)
    due = [10 + round(i * 39 / 11) * 235 // 40 for i in range(12)]
    assert np.abs(seen - due).max() <= 2
