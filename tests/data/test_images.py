"""Sizes against golden vectors, pixels against transformers."""

import io

import numpy as np
import pytest
from PIL import Image

from data.config import ImageConfig
from data.errors import SampleError
from data.images import decode_image, image_grid, image_size, normalisation_table, patchify, resize_image, smart_resize
from tests.data.conftest import picture_bytes

SMALL, LARGE = (56 * 56, 28 * 28 * 1280), (4 * 784, 16384 * 784)


@pytest.mark.parametrize(
    ("size", "limits", "resized", "patches", "tokens"),
    [
        ((224, 224), SMALL, (224, 224), 256, 64),
        ((480, 640), SMALL, (476, 644), 1564, 391),
        ((1080, 1920), SMALL, (728, 1316), 4888, 1222),
        ((1080, 1920), LARGE, (1092, 1932), 10764, 2691),
        ((2160, 3840), LARGE, (2156, 3836), 42196, 10549),
        ((14, 14), SMALL, (56, 56), 16, 4),
        ((28, 28), SMALL, (56, 56), 16, 4),
        ((42, 42), SMALL, (56, 56), 16, 4),
        ((70, 70), SMALL, (56, 56), 16, 4),  # 70 / 28 = 2.5 goes to the even 2
        ((40, 2000), SMALL, (28, 1988), 284, 71),
        ((30, 5000), SMALL, (28, 5012), 716, 179),
    ],
)
def test_golden_sizes(size: tuple[int, int], limits: tuple, resized: tuple, patches: int, tokens: int) -> None:
    grid = image_grid(*size, ImageConfig(min_pixels=limits[0], max_pixels=limits[1]))
    assert ((grid.height, grid.width), grid.num_patches, grid.num_tokens) == (resized, patches, tokens)


def test_an_aspect_above_200_is_refused_and_200_is_not() -> None:
    assert smart_resize(10, 2000, 28, *SMALL)[0] == 28
    with pytest.raises(SampleError, match="10x2001"):
        smart_resize(10, 2001, 28, *SMALL)


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
        mode = ("RGB", "L", "RGBA", "P", "LA", "1")[number % 6]
        kind = "JPEG" if mode == "RGB" and number % 4 == 0 else "PNG"
        stream = io.BytesIO()
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(stream, kind)
        expected = peer(Image.open(io.BytesIO(stream.getvalue())), return_tensors="np")
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


def test_sixteen_bit_pictures_are_scaled_not_saturated() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    grey = np.asarray(decode_image(stream.getvalue()))[..., 0].astype(int)
    assert np.abs(grey - np.round(ramp / 257)).max() == 0


def test_broken_pictures_raise_sample_error() -> None:
    good = picture_bytes(40, 50)
    assert image_size(good) == (40, 50)
    for bad in (b"", b"GIF89a nothing", good[: len(good) // 2], good[:60] + bytes(200) + good[260:]):
        with pytest.raises(SampleError):
            decode_image(bad)
