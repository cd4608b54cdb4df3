"""Clips whose frames show their own number, in the containers and codecs that decoders are known to trip over."""

import functools
import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH, FRAMES, BITS = 96, 128, 90, 8
# Between 10 and 120 ms a frame.
_UNEVEN = np.cumsum(np.random.default_rng(0).integers(10, 120, FRAMES))
_OPEN_GOP = "open-gop=1:keyint=24:bframes=3:b-adapt=0:scenecut=0"


@dataclass(frozen=True, kw_only=True)
class NumberedClip:
    """A clip of `frames` frames."""

    data: bytes
    frames: int
    decoder: str
    """Who is to decode it: decord only where its frame numbers are exact."""


def numbered_frame(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Eight upright bars, bright where the number has a bit."""
    bars = [230 if number >> bit & 1 else 25 for bit in range(BITS)]
    return np.broadcast_to(np.repeat(np.uint8(bars), width // BITS)[None, :, None], (height, width, 3))


def read_number(frame: np.ndarray) -> int:
    """What `numbered_frame` was given, of a frame of any size."""
    height, width, _ = frame.shape
    bars = frame[height // 4 : 3 * height // 4].reshape(-1, BITS, width // BITS, 3)
    middle = bars[:, :, width // BITS // 4 : -(width // BITS // 4)]
    return sum(int(middle[:, bit].mean() > 127) << bit for bit in range(BITS))


def encode(codec: str, container: str, times: Any = None, **options: str) -> bytes:
    """FRAMES numbered frames, 30 a second or at `times` in milliseconds."""
    stream = io.BytesIO()
    tick = Fraction(1, 30) if times is None else Fraction(1, 1000)
    with av.open(stream, "w", format=container) as output:
        video = output.add_stream(codec, rate=30, options=options)
        video.width, video.height, video.pix_fmt, video.gop_size = WIDTH, HEIGHT, "yuv420p", 24
        video.codec_context.time_base = tick
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = int(number if times is None else times[number]), tick
            output.mux(video.encode(frame))
        output.mux(video.encode())
    return stream.getvalue()


@functools.cache
def encode_scene(frames: int, height: int, width: int) -> bytes:
    """H.264 in mp4 of a coarse random picture that moves, 30 frames a second."""
    random = np.random.default_rng(0)
    scene = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "35"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            moved = np.roll(scene, (3 * number, 5 * number), (0, 1))
            output.mux(video.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        output.mux(video.encode())
    return stream.getvalue()


@functools.cache
def numbered_clips() -> dict[str, NumberedClip]:
    """By name."""
    plans: dict[str, tuple[str, bytes]] = {
        "mp4": ("decord", encode("libx264", "mp4")),
        "mp4, uneven times": ("decord", encode("libx264", "mp4", _UNEVEN)),
        "mp4, starts at 2 s": ("decord", encode("libx264", "mp4", 2000 + 33 * np.arange(FRAMES))),
        "mkv": ("decord", encode("libx264", "matroska")),
        "webm, VP8": ("decord", encode("libvpx", "webm", deadline="realtime")),
        "webm, VP8, uneven times": ("decord", encode("libvpx", "webm", _UNEVEN, deadline="realtime")),
        "mp4, H.264, open GOP": ("pyav", encode("libx264", "mp4", **{"x264-params": _OPEN_GOP})),
        "mov, HEVC": (
            "pyav",
            encode("libx265", "mov", preset="ultrafast", **{"x265-params": f"log-level=0:{_OPEN_GOP}"}),
        ),
        "mpegts": ("pyav", encode("libx264", "mpegts")),
        "avi, MPEG-4": ("pyav", encode("mpeg4", "avi")),
    }
    return {name: NumberedClip(data=data, frames=FRAMES, decoder=decoder) for name, (decoder, data) in plans.items()}
