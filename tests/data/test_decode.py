"""Decoding clips in a child, and the cache of decoded frames."""

import io
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from data import decode_child
from data.config import ImageConfig, VideoConfig
from data.decode import ClipDecoder
from data.decode_cache import HEADER_BYTES, DecodeCache, clip_key
from data.encode import media_grid
from data.errors import SampleError
from data.images import normalisation_table
from data.media import PatchReader
from data.types import MediaSize, RawSample
from data.video import choose_frames, video_grid
from tests.data.conftest import IMAGE, VIDEO, clip_bytes


@pytest.fixture(scope="module")
def decoder() -> Iterator[ClipDecoder]:
    decoder = ClipDecoder(20.0)
    yield decoder
    decoder.close()


def test_decord_and_pyav_agree_on_sizes_and_frames(decoder: ClipDecoder, clip: bytes) -> None:
    size = decoder.probe(clip)
    assert size == MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0)
    peer = decode_child.PyAvReader(clip)
    assert peer.probe() == (12, 8.0, 48, 64)
    indices = np.array([0, 3, 7, 11])
    found = decoder.decode(clip, indices, 28, 56)
    expected = decode_child.resize_frames(decode_child.PyAvReader(clip).frames(indices.tolist()), 28, 56)
    assert found.shape == (4, 28, 56, 3)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.abs(found.mean(axis=(1, 2, 3)) - [10 + i * 235 // 12 for i in indices]).max() < 3


def test_a_broken_clip_is_a_sample_error_and_the_child_lives_on(decoder: ClipDecoder, clip: bytes) -> None:
    for bad in (b"", b"not a clip", clip[: len(clip) // 3]):
        with pytest.raises(SampleError):
            decoder.decode(bad, np.array([0, 1]), 28, 28)
    assert decoder.decode(clip, np.array([0, 11]), 28, 28).shape == (2, 28, 28, 3)


def test_a_hanging_decoder_is_killed_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: bytes
) -> None:
    script = tmp_path / "hangs.py"
    source = Path(decode_child.__file__).read_text()
    hang = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    main = 'if __name__ == "__main__":'
    assert main in source
    script.write_text(source.replace(main, f"{hang}def answer(*_):\n    time.sleep(60)\n\n\n{main}"))
    decoder = ClipDecoder(0.3)
    with monkeypatch.context() as patch:
        patch.setattr(decode_child, "__file__", str(script))
        start = time.monotonic()
        with pytest.raises(SampleError, match=r"deadline of 0\.3 s"):
            decoder.decode(clip, np.array([0, 1]), 28, 28)
        assert time.monotonic() - start < 10
    decoder._timeout = 20.0
    assert decoder.decode(clip, np.array([0, 1]), 28, 28).shape == (2, 28, 28, 3), "a new child takes over"
    decoder.close()


def test_a_decoder_that_dies_while_it_is_written_to_costs_one_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: bytes
) -> None:
    script = tmp_path / "dies.py"
    source = Path(decode_child.__file__).read_text()
    serve = "    while (message := read_message("
    assert serve in source
    script.write_text(source.replace(serve, f"    os._exit(1)\n{serve}"))
    decoder = ClipDecoder(20.0)
    with monkeypatch.context() as patch:
        patch.setattr(decode_child, "__file__", str(script))
        with pytest.raises(SampleError, match="decoder died"):
            # More than a pipe holds, so that the writer is still at it when the reader has gone.
            decoder.decode(bytes(4 << 20), np.array([0, 1]), 28, 28)
    assert decoder.decode(clip, np.array([0, 1]), 28, 28).shape == (2, 28, 28, 3), "a new child takes over"
    decoder.close()


def test_the_child_leaves_with_its_parent() -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-P', {decode_child.__file__!r}], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE)\n"
        "child.stdout.read(8)\n"
        "print(child.pid, flush=True)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if " Z " in Path(f"/proc/{child}/stat").read_text():
            return  # dead; nobody has collected it yet
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_pyav_stands_in_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clip: bytes
) -> None:
    script = tmp_path / "without.py"
    source = Path(decode_child.__file__).read_text()
    script.write_text(source.replace("import threading\n", "import threading\nsys.modules['decord'] = None\n"))
    monkeypatch.setattr(decode_child, "__file__", str(script))
    decoder = ClipDecoder(20.0)
    with caplog.at_level(logging.WARNING):
        assert decoder.probe(clip).frames == 12
        decoder.close()
        assert decoder.decode(clip, np.array([0, 1]), 28, 28).shape == (2, 28, 28, 3)
    decoder.close()
    assert decoder.name.startswith("pyav")
    assert sum("decord cannot be imported" in record.message for record in caplog.records) == 1


FRAMES = np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), dtype=np.uint8)
FILE_BYTES = HEADER_BYTES + FRAMES.nbytes


def key_of(number: int) -> str:
    return clip_key(b"clip", np.array([number]), 28, 56, "decord")


def test_cache_gives_back_the_frames_to_anyone(tmp_path: Path) -> None:
    DecodeCache(tmp_path, 10 * FILE_BYTES).put(key_of(0), FRAMES)
    found = DecodeCache(tmp_path, 10 * FILE_BYTES).get(key_of(0))
    assert found is not None and np.array_equal(found, FRAMES)
    assert DecodeCache(tmp_path, 10 * FILE_BYTES).get(key_of(1)) is None


@pytest.mark.parametrize("place", [0, 9, 30, 60, 70, HEADER_BYTES, FILE_BYTES - 1, None])
def test_a_corrupt_or_short_file_is_a_miss_and_goes_away(place: int | None, tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    cache.put(key_of(0), FRAMES)
    (path,) = tmp_path.glob("*/*.clip")
    data = bytearray(path.read_bytes())
    if place is None:
        del data[-1]
    else:
        data[place] ^= 1
    path.write_bytes(data)
    assert cache.get(key_of(0)) is None
    assert not path.exists()


def test_a_file_under_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, 10 * FILE_BYTES)
    cache.put(key_of(0), FRAMES)
    (path,) = tmp_path.glob("*/*.clip")
    other = cache._path(key_of(1))
    other.parent.mkdir(exist_ok=True)
    path.rename(other)
    assert cache.get(key_of(1)) is None


def test_cache_stays_below_its_bound_and_drops_the_oldest(tmp_path: Path) -> None:
    bound = 5 * FILE_BYTES
    cache = DecodeCache(tmp_path, bound)
    for number in range(5):
        cache.put(key_of(number), FRAMES)
        os.utime(cache._path(key_of(number)), (number, number))
    assert cache.get(key_of(0)) is not None, "reading makes it recent"
    for number in range(5, 9):
        cache.put(key_of(number), FRAMES)
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= bound
    assert cache.get(key_of(8)) is not None and cache.get(key_of(0)) is not None and cache.get(key_of(1)) is None
    small = DecodeCache(tmp_path / "small", FILE_BYTES - 1)
    small.put(key_of(0), FRAMES)
    assert small.get(key_of(0)) is None


def test_keys_name_all_that_decides_the_pixels() -> None:
    base = (b"clip", np.array([0, 1]), 28, 56, "decord 0.6.0")
    others = [
        (b"clap", *base[1:]),
        (base[0], np.array([0, 2]), *base[2:]),
        (*base[:2], 56, 28, base[4]),
        (*base[:4], "pyav"),
    ]
    assert len({clip_key(*other) for other in [base, *others]}) == 5


def test_patches_of_a_clip_come_from_the_cache_the_second_time(tmp_path: Path, clip: bytes) -> None:
    video = VideoConfig(
        min_pixels=VIDEO.min_pixels,
        max_pixels=VIDEO.max_pixels,
        max_frames=8,
        cache_dir=str(tmp_path),
        cache_bytes=10**7,
    )
    raw = RawSample(key="k", content={}, media={0: ("mp4", clip)})
    sizes = [MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0)]
    reader = PatchReader(IMAGE, video)
    first = reader.read(raw, (0,), sizes)
    assert first.shape == (video_grid(12, 8.0, 48, 64, IMAGE, video).num_patches, 1176)
    (path,) = tmp_path.glob("*/*.clip")
    stored = path.stat().st_mtime_ns
    reader._decoder.decode = lambda *_: pytest.fail("decoded again")  # type: ignore[method-assign,assignment]
    assert np.array_equal(reader.read(raw, (0,), sizes), first)
    assert path.stat().st_mtime_ns >= stored
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


def test_frames_come_in_order_however_many_are_asked_for() -> None:
    clip = clip_bytes(frames=40)
    indices = [0, 0, 1, *range(5, 40)]
    for reader in {decode_child.choose_decoder()[1], decode_child.PyAvReader}:
        levels = [frame.mean() for frame in reader(clip).frames(indices)]
        assert np.abs(np.array(levels) - [10 + i * 235 // 40 for i in indices]).max() < 3


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_clip_filmed_on_its_side_is_shown_upright(turns: int) -> None:
    """As phones store them: frames as the sensor gave them, and how to turn them in the track's header."""
    height, width, one = 96, 128, 1 << 16
    stored = np.zeros((height, width, 3), dtype=np.uint8)
    stored[:48, :64], stored[:48, 64:], stored[48:, :64] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=8)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(video.encode())
    data = bytearray(stream.getvalue())
    # ISO 14496-12: the matrix stands 40 bytes into a version 0 header; clockwise turns, then moved back into view.
    start = data.index(b"tkhd") + 4 + 40
    across, down, x, y = [
        ((one, 0), (0, one), 0, 0),
        ((0, one), (-one, 0), height, 0),
        ((-one, 0), (0, -one), width, height),
        ((0, -one), (one, 0), 0, width),
    ][turns]
    data[start : start + 36] = struct.pack(">9i", *across, 0, *down, 0, x * one, y * one, 1 << 30)
    shown = np.rot90(stored, -turns).astype(int)
    for reader in {decode_child.choose_decoder()[1], decode_child.PyAvReader}:
        assert reader(bytes(data)).probe()[2:] == shown.shape[:2]
        (found,) = reader(bytes(data)).frames([0])
        assert np.abs(found[4::8, 4::8] - shown[4::8, 4::8]).max() < 12, reader


def test_a_one_frame_clip_is_repeated(decoder: ClipDecoder) -> None:
    clip = clip_bytes(frames=1)
    size = decoder.probe(clip)
    indices = choose_frames(size.frames, size.fps, VIDEO)
    assert indices.tolist() == [0, 0]
    frames = decoder.decode(clip, indices, 28, 28)
    assert np.array_equal(frames[0], frames[1])
