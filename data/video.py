"""Clips: which frames and at what size, as pure functions of (frames, fps, height, width).

Source: qwen-vl-utils' rules (2 fps, even count, per-frame budget), and the cap of 16384 tokens a clip from the
Qwen2-VL paper, which those rules alone do not keep. Decoding is in `decode.py`.
"""

import math

import numpy as np

from data.config import ImageConfig, VideoConfig
from data.errors import SampleError
from data.images import smart_resize
from data.types import Grid, Int64


def choose_num_frames(frames: int, fps: float, config: VideoConfig, depth: int = 2) -> int:
    """How many frames to take: a multiple of `depth`, the time that one patch spans.

    A clip with fewer than `depth` frames has its last one repeated. Raises SampleError for an empty clip.
    """
    if frames < 1 or not (math.isfinite(fps) and fps > 0):
        raise SampleError(f"clip has {frames} frames at {fps} frames per second")
    if frames < depth:
        return depth
    low = math.ceil(config.min_frames / depth) * depth
    high = min(config.max_frames, frames) // depth * depth
    wanted = min(max(frames / fps * config.fps, low), high)
    return max(depth, math.floor(wanted / depth) * depth)


def choose_frames(frames: int, fps: float, config: VideoConfig, depth: int = 2) -> Int64:
    """Indices of the frames to take, evenly from first to last; halves are rounded to even."""
    count = choose_num_frames(frames, fps, config, depth)
    # An integer product and one division: every half is exact, so all hosts agree (float32 linspace is not exact).
    return np.rint(np.arange(count) * (frames - 1) / (count - 1)).astype(np.int64)


def frame_size(height: int, width: int, count: int, image: ImageConfig, video: VideoConfig) -> tuple[int, int]:
    """(height, width) in pixels that each of `count` frames is resized to; never above max_tokens for the clip."""
    shared = video.total_pixels / count * image.temporal_patch_size
    most = max(min(video.max_pixels, shared), int(video.min_pixels * 1.05))
    factor = image.factor
    cap = video.max_tokens * image.temporal_patch_size // count * factor**2
    most = max(min(int(most), cap), factor**2)
    rows, columns = smart_resize(height, width, factor, min(video.min_pixels, most), most)
    # Growing to min_pixels rounds up, and a side cannot shrink below one token: both may pass the cap.
    if rows * columns > cap:
        longer = max(factor, cap // min(rows, columns) // factor * factor)
        rows, columns = (longer, columns) if rows >= columns else (rows, longer)
    return rows, columns


def video_grid(frames: int, fps: float, height: int, width: int, image: ImageConfig, video: VideoConfig) -> Grid:
    """The grid a clip of these properties will have; raises SampleError."""
    depth = image.temporal_patch_size
    count = choose_num_frames(frames, fps, video, depth)
    rows, columns = frame_size(height, width, count, image, video)
    return Grid(
        time=count // depth, height=rows, width=columns, patch_size=image.patch_size, merge_size=image.merge_size
    )
