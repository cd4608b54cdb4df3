"""Sizes against golden vectors, pixels against transformers. Picture files are in test_pictures.py."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.config import ImageConfig
from data.errors import SampleError
from data.visual.images import image_grid, normalisation_table, patchify, resize_image, smart_resize
from data.visual.pictures import decode_image, image_size
from tests.prove.model_data_golden import GOLDEN_SIZES, SMALL
from tests.prove.model_data_pictures import exif


@pytest.mark.parametrize(
    ("size", "limits", "resized", "patches", "tokens"),
    GOLDEN_SIZES,
)
def test_golden_sizes(size: tuple[int, int], limits: tuple, resized: tuple, patches: int, tokens: int) -> None:
    grid = image_grid(*size, ImageConfig(min_pixels=limits[0], max_pixels=limits[1]))
    assert ((grid.height, grid.width), grid.num_patches, grid.num_tokens) == (resized, patches, tokens)


def test_an_aspect_above_200_is_refused_and_200_is_not() -> None:
    assert smart_resize(10, 2000, 28, *SMALL)[0] == 28
    with pytest.raises(SampleError, match="10x2001"):
        smart_resize(10, 2001, 28, *SMALL)
    with pytest.raises(SampleError, match="0x7"):
        smart_resize(0, 7, 28, *SMALL)


@settings(max_examples=2000)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(784, 10**6), st.integers(0, 10**7))
def test_sizes_are_those_of_transformers(height: int, width: int, low: int, more: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as peer

    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="aspect ratio"):
            peer(height, width, 28, low, low + more)
        with pytest.raises(SampleError, match="aspect ratio"):
            smart_resize(height, width, 28, low, low + more)
    else:
        assert smart_resize(height, width, 28, low, low + more) == peer(height, width, 28, low, low + more)


def patches_of(data: bytes, config: ImageConfig) -> tuple[np.ndarray, tuple[int, int, int]]:
    grid = image_grid(*image_size(data), config)
    out = np.full((grid.num_patches, config.patch_dim), np.nan, dtype=np.float32)
    patchify(resize_image(decode_image(data), grid), config, normalisation_table(config), out)
    return out, grid.patches


def test_pixels_are_those_of_transformers_bit_for_bit() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    config = ImageConfig(min_pixels=3136, max_pixels=28 * 28 * 60)
    peer = Qwen2VLImageProcessorPil(min_pixels=config.min_pixels, max_pixels=config.max_pixels)
    random = np.random.default_rng(0)
    sizes = [(1, 1), (10, 2000), (1500, 9), (29, 700), (3, 400)]
    sizes += [(int(random.integers(5, 420)), int(random.integers(5, 420))) for _ in range(43)]
    for number, (height, width) in enumerate(sizes):
        mode = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")[number % 7]
        kind = "JPEG" if mode == "CMYK" or number % 14 == 0 else "PNG"
        stream = io.BytesIO()
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        turned = b"Exif\0\0" + exif(number % 8 + 1)
        picture = Image.fromarray(pixels).convert("RGB" if mode == "CMYK" else mode)
        picture.convert(mode).save(stream, kind, exif=turned)
        # transformers' load_image turns pictures so before its processor sees them.
        seen = ImageOps.exif_transpose(Image.open(io.BytesIO(stream.getvalue())))
        expected = peer(seen, return_tensors="np")
        found, grid = patches_of(stream.getvalue(), config)
        assert grid == tuple(expected["image_grid_thw"][0]), (height, width, mode)
        assert np.array_equal(found, expected["pixel_values"]), (height, width, mode)


def test_patch_order_is_merge_block_then_colour_frame_y_x() -> None:
    config = ImageConfig(patch_size=2, merge_size=2)
    frames = np.random.default_rng(1).integers(0, 256, (4, 8, 12, 3), dtype=np.uint8)
    table = normalisation_table(config)
    out = np.empty((2 * 4 * 6, config.patch_dim), dtype=np.float32)
    patchify(frames, config, table, out)
    number = 0
    for time in range(2):
        for block_row in range(2):
            for block_column in range(3):
                for y in range(2):
                    for x in range(2):
                        top, left = (block_row * 2 + y) * 2, (block_column * 2 + x) * 2
                        piece = frames[time * 2 : time * 2 + 2, top : top + 2, left : left + 2]
                        colours = np.stack([table[c][piece[..., c]] for c in range(3)])
                        assert np.array_equal(out[number], colours.reshape(-1))
                        number += 1


def test_a_picture_is_two_equal_frames() -> None:
    config = ImageConfig()
    frame = np.random.default_rng(2).integers(0, 256, (1, 56, 84, 3), dtype=np.uint8)
    once, twice = np.empty((2, 24, config.patch_dim), dtype=np.float32)
    table = normalisation_table(config)
    patchify(frame, config, table, once)
    patchify(np.concatenate([frame, frame]), config, table, twice)
    assert np.array_equal(once, twice)
    halves = once.reshape(24, 3, 2, 14, 14)
    assert np.array_equal(halves[:, :, 0], halves[:, :, 1])
