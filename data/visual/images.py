"""Pictures: sizes as pure functions, resizing, and the patches that the vision tower reads; files are in pictures.py.

Bit for bit what transformers' `Qwen2VLImageProcessorPil` gives for the same pixels (tests/data/test_images.py).
Shape letters: F frames, H W pixels, P patches, D floats of a patch.
"""

import math

import numpy as np
from PIL import Image

from data.config import ImageConfig
from data.errors import SampleError
from data.types import Bytes, Float32, Grid

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 200


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Multiples of `factor` near (height, width) whose area lies in the pixel range.

    Source: qwen-vl-utils; sides are rounded half to even as Python does. Raises SampleError above an aspect of 200.
    """
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
        raise SampleError(f"picture of {height}x{width} pixels: aspect ratio above {MAX_ASPECT}")
    return fitted_sides(height, width, factor, min_pixels, max_pixels)


def fitted_sides(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The arithmetic of `smart_resize`, which data/plan/lengths.py runs over whole columns of sizes."""
    rows = round(height / factor) * factor
    columns = round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    # A side that rounds to nothing survives the area test when min_pixels is below one visual token.
    return max(factor, rows), max(factor, columns)


def image_grid(height: int, width: int, config: ImageConfig) -> Grid:
    """The grid a picture of this size will have; raises SampleError."""
    rows, columns = smart_resize(height, width, config.factor, config.min_pixels, config.max_pixels)
    return Grid(time=1, height=rows, width=columns, patch_size=config.patch_size, merge_size=config.merge_size)


def resize_image(picture: Image.Image, grid: Grid) -> Bytes:
    """(1, H, W, 3) bicubic."""
    resized = picture.resize((grid.width, grid.height), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8)[None]


def normalisation_table(config: ImageConfig) -> Float32:
    """(3, 256): the normalised float of every byte and colour, in transformers' order of roundings."""
    rescaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean = np.array(CLIP_MEAN, dtype=np.float32)
    std = np.array(CLIP_STD, dtype=np.float32)
    return (rescaled[None] - mean[:, None]) / std[:, None]


def patchify(frames: Bytes, config: ImageConfig, table: Float32, out: Float32) -> None:
    """Write (F, H, W, 3) frames as (P, D) patches into `out`, merge block after merge block.

    F is 1 (a picture, repeated over the temporal patch) or a multiple of temporal_patch_size.
    Bytes are transposed before they become floats: a quarter of the memory traffic.
    """
    size, merge, depth = config.patch_size, config.merge_size, config.temporal_patch_size
    count, height, width, _ = frames.shape
    rows, columns = height // (size * merge), width // (size * merge)
    taken = min(count, depth)
    blocks = frames.reshape(count // taken, taken, rows, merge, size, columns, merge, size, 3)
    # -> time, block row, block column, row in block, column in block, colour, frame, y, x
    ordered = np.ascontiguousarray(blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(-1, 3, taken, size, size)
    view = out.reshape(-1, 3, depth, size, size)
    assert view.shape[0] == ordered.shape[0] and out.flags.c_contiguous, (view.shape, ordered.shape)
    for colour in range(3):
        view[:, colour] = table[colour][ordered[:, colour]]


def unpatched(patches: Float32, grid: Grid, config: ImageConfig) -> Bytes:
    """uint8 (F, height, width, 3) of normalised patches (P, D): what `patchify` made them of, P patches of D floats."""
    size, merge, depth = config.patch_size, config.merge_size, config.temporal_patch_size
    time, rows, columns = grid.merged
    blocks = patches.reshape(time, rows, columns, merge, merge, 3, depth, size, size)
    # time, block row, block column, row in block, column in block, colour, frame, y, x -> frames of pixels
    frames = blocks.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(time * depth, grid.height, grid.width, 3)
    shares = frames * np.array(CLIP_STD, dtype=np.float32) + np.array(CLIP_MEAN, dtype=np.float32)
    return np.asarray(np.rint(shares * 255).clip(0, 255), dtype=np.uint8)
