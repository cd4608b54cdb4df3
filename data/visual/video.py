"""Clips: which frames and at what size, as pure functions of (frames, fps, height, width).

Source: qwen-vl-utils' rules (2 fps, even count, per-frame budget), and the cap of 16384 tokens a clip from the
Qwen2-VL paper, which those rules alone do not keep. Decoding is in `decode.py`.
"""

import math

import numpy as np

from data.config import LEAST_TOKENS, ImageConfig, VideoConfig
from data.errors import SampleError
from data.types import Grid, Int64
from data.visual.images import smart_resize


def choose_num_frames(frames: int, fps: float, config: VideoConfig, depth: int = 2) -> int:
    """How many frames to take: a multiple of `depth`, the time that one patch spans.

    So few that each temporal patch has LEAST_TOKENS of max_tokens for itself: that wins over fps and min_frames. A clip
    with fewer than `depth` frames has its last one repeated. Raises SampleError for an empty clip.
    """
    if frames < 1 or not (math.isfinite(fps) and fps > 0):
        raise SampleError(f"clip has {frames} frames at {fps} frames per second")
    if frames < depth:
        return depth
    low = math.ceil(config.min_frames / depth) * depth
    most = frames if config.max_frames is None else min(config.max_frames, frames)
    wanted = min(max(frames / fps * config.fps, low), most // depth * depth)
    temporal = min(math.floor(wanted / depth), config.max_tokens // LEAST_TOKENS)
    return max(1, temporal) * depth


def choose_frames(frames: int, fps: float, config: VideoConfig, depth: int = 2) -> Int64:
    """Indices of the frames to take, evenly from first to last; halves are rounded to even."""
    count = choose_num_frames(frames, fps, config, depth)
    if count == 1:  # of a temporal patch of one frame
        return np.zeros(1, dtype=np.int64)
    # An integer product and one division: every half is exact, so all hosts agree (float32 linspace is not exact).
    return np.rint(np.arange(count) * (frames - 1) / (count - 1)).astype(np.int64)


def frame_size(height: int, width: int, count: int, image: ImageConfig, video: VideoConfig) -> tuple[int, int]:
    """(height, width) in pixels that each of `count` frames is resized to; never above max_tokens for the clip.

    What the rules give is shrunk to the cap, if it is above it, and then keeps at least LEAST_TOKENS a temporal patch.
    """
    shared = video.total_pixels / count * image.temporal_patch_size
    most = max(min(video.max_pixels, shared), int(video.min_pixels * 1.05), image.factor**2)
    least = min(video.min_pixels, most)
    rows, columns = smart_resize(height, width, image.factor, int(least), int(most))
    cap = tokens_per_temporal_patch(count, image, video)
    if rows * columns > cap * image.factor**2:
        rows, columns = (side * image.factor for side in _shrink(height, width, cap, image.factor))
    return rows, columns


def tokens_per_temporal_patch(count: int, image: ImageConfig, video: VideoConfig) -> int:
    """The most visual tokens that each temporal patch of a clip of `count` frames may have."""
    return video.max_tokens // (count // image.temporal_patch_size)


def video_grid(frames: int, fps: float, height: int, width: int, image: ImageConfig, video: VideoConfig) -> Grid:
    """The grid a clip of these properties will have; raises SampleError."""
    depth = image.temporal_patch_size
    count = choose_num_frames(frames, fps, video, depth)
    rows, columns = frame_size(height, width, count, image, video)
    return Grid(
        time=count // depth, height=rows, width=columns, patch_size=image.patch_size, merge_size=image.merge_size
    )


def _shrink(height: int, width: int, cap: int, factor: int) -> tuple[int, int]:
    """(rows, columns) of visual tokens, at most `cap` of them, of about the frame's shape."""
    shrink = math.sqrt(height * width / (cap * factor**2))  # as smart_resize has it
    rows = max(1, math.floor(height / shrink / factor))
    columns = max(1, math.floor(width / shrink / factor))
    if rows * columns < LEAST_TOKENS:  # only below a cap of 16: a floor at most halves a side
        shapes = [(r, c) for r in range(1, cap + 1) for c in range(1, cap // r + 1) if r * c >= LEAST_TOKENS]
        # The shape nearest to the frame's; of equals the one with more tokens.
        return min(shapes, key=lambda s: (abs(math.log(s[0] * width / (s[1] * height))), -s[0] * s[1]))
    # A side cannot shrink below one token, so the longer one has to.
    return (rows, min(columns, cap)) if rows == 1 else (min(rows, cap // columns), columns)
