"""Defects of pictures, positions and clips. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.prove.data_defects import packed_positions
from tests.prove.planting import Mend, replace_name


def exif_ignored() -> Mend:
    """Pictures stay as the camera stored them."""
    from data.visual import pictures

    return replace_name(pictures, "_orientation", lambda _: lambda picture, data: 1)


def wide_saturated() -> Mend:
    """16-bit greys above 255 become white, as Pillow converts them."""
    from data.visual import pictures

    def saturate(picture: Any) -> Image.Image:
        return Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8)).convert("RGB")

    return replace_name(pictures, "_from_wide", lambda _: saturate)


def alpha_dropped() -> Mend:
    """What is see-through shows the colour beneath it."""
    from data.visual import pictures

    def make(to_rgb: Any) -> Any:
        def planted(picture: Any, data: bytes) -> Image.Image:
            return to_rgb(picture, data) if picture.mode[0] == "I" else picture.convert("RGB")

        return planted

    return replace_name(pictures, "_to_rgb", make)


def bilinear() -> Mend:
    """Pictures are resized with the wrong filter."""
    from data.loading import media

    def resize(picture: Image.Image, grid: Any) -> np.ndarray:
        return np.asarray(picture.resize((grid.width, grid.height), Image.Resampling.BILINEAR))[None]

    return replace_name(media, "resize_image", lambda _: resize)


def sizes_rounded_up() -> Mend:
    """Half a visual token counts as a whole one, where Python rounds to the even number."""
    from data.visual import images

    def make(smart_resize: Any) -> Any:
        def planted(height: int, width: int, factor: int, *limits: int) -> Any:
            return smart_resize(height + (height % factor == factor // 2), width, factor, *limits)

        return planted

    return replace_name(images, "smart_resize", make)


def nameless_errors() -> Mend:
    """A flawed picture is reported without saying which."""
    from data.errors import SampleError
    from data.index import measure

    def make(sizes: Any) -> Any:
        def planted(*arguments: Any) -> Any:
            try:
                return sizes(*arguments)
            except SampleError as error:
                raise SampleError(str(error.__cause__)) from None

        return planted

    return replace_name(measure, "_sizes", make)


def text_after_area() -> Mend:
    """Text after a clip goes on by height and width alone, as in transformers."""
    from data.encoding import encode

    def make(_: Any) -> Any:
        def planted(num_tokens: int, spans: Any) -> np.ndarray:
            found, offset, place = np.empty((3, num_tokens), dtype=np.int64), 0, 0
            for start, grid in spans:
                found[:, place:start] = np.arange(offset, offset + start - place)
                offset, place = offset + start - place, start + int(np.prod(grid))
                found[:, start:place] = np.indices(grid).reshape(3, -1) + offset
                offset += max(grid[1:])
            found[:, place:] = np.arange(offset, offset + num_tokens - place)
            return found

        return planted

    return replace_name(encode, "mrope_positions", make)


def height_width_swapped() -> Mend:
    """Rows are counted on the width axis, columns on the height axis."""
    from data.encoding import encode

    return replace_name(encode, "mrope_positions", lambda real: lambda *arguments: real(*arguments)[[0, 2, 1]])


def cap_off() -> Mend:
    """Frames keep the size that the rules without a cap give."""
    from data.visual import video

    return replace_name(video, "tokens_per_temporal_patch", lambda _: lambda *_: 1 << 40)


def thinning_off() -> Mend:
    """Frames shrink to one token before any is left out."""
    from data.visual import video

    return replace_name(video, "LEAST_TOKENS", lambda _: 1)


def first_frames() -> Mend:
    """As many frames as planned, but from the start of the clip on."""
    from data.loading import media

    return replace_name(media, "choose_frames", lambda real: lambda *arguments: np.arange(len(real(*arguments))))


def still_moves() -> Mend:
    """The second frame of a still picture is black."""
    from data.loading import media

    def make(resize_image: Any) -> Any:
        def planted(*arguments: Any) -> np.ndarray:
            frames = resize_image(*arguments)
            return np.concatenate([frames, np.zeros_like(frames)])

        return planted

    return replace_name(media, "resize_image", make)


MODEL_DATA_PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "exif_ignored": (exif_ignored, ("pictures/colours", "pictures/transformers")),
    "wide_saturated": (wide_saturated, ("pictures/colours",)),
    "alpha_dropped": (alpha_dropped, ("pictures/colours", "pictures/transformers")),
    "bilinear": (bilinear, ("pictures/transformers",)),
    "sizes_rounded_up": (sizes_rounded_up, ("pictures/golden", "pictures/sizes")),
    "nameless_errors": (nameless_errors, ("pictures/named",)),
    "text_after_area": (text_after_area, ("mrope/longer",)),
    "samples_run_on": (packed_positions, ("mrope/packed",)),
    "height_width_swapped": (height_width_swapped, ("mrope/golden", "mrope/transformers")),
    "cap_off": (cap_off, ("clips/golden", "clips/cap")),
    "thinning_off": (thinning_off, ("clips/golden", "clips/cap")),
    "first_frames": (first_frames, ("clips/frames",)),
    "still_moves": (still_moves, ("clips/still", "pictures/transformers")),
}
