"""Canvases: photographs with paper cards on a grid of visual tokens, stored in several formats and in uneven sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from data.samples.digits import CARD, Card
from data.samples.items import Media
from data.samples.scenes import Scene

Cell = tuple[int, int]  # (row, column)
FRAME = 2  # pixels; a card keeps more paper than that free around its ink


def choose_cells(rng: np.random.Generator, rows: int, columns: int, number: int) -> list[Cell]:
    """`number` different cells of the grid."""
    chosen = rng.permutation(rows * columns)[:number]
    return [(int(place) // columns, int(place) % columns) for place in chosen]


def paste(scene: Scene, cards: Sequence[Card], cells: Sequence[Cell]) -> np.ndarray:
    """The framed scene with cards on it; uint8 (height, width, 3)."""
    canvas = scene.pixels.copy()
    for card, (row, column) in zip(cards, cells, strict=True):
        canvas[row * CARD : (row + 1) * CARD, column * CARD : (column + 1) * CARD] = card.pixels
    return framed(canvas)


def framed(canvas: np.ndarray) -> np.ndarray:
    """The canvas, or clip of them, with a thin dark line along its edges, changed in place.

    Rotary positions are relative: without an edge to look at, no patch could tell its place in the picture.
    """
    canvas[..., :FRAME, :, :] = canvas[..., -FRAME:, :, :] = 0
    canvas[..., :FRAME, :] = canvas[..., -FRAME:, :] = 0
    return canvas


def uneven_size(rng: np.random.Generator, width: int, height: int, *, even: bool = False) -> tuple[int, int]:
    """A size near (width, height) that the model's resize rounds back to it: the grid survives, the file sizes vary."""
    moved = [side + int(rng.integers(-8, 9)) for side in (width, height)]
    return (moved[0] // 2 * 2, moved[1] // 2 * 2) if even else (moved[0], moved[1])


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (height, width, 3) resized to (width, height)."""
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def store_picture(rng: np.random.Generator, pixels: np.ndarray) -> Media:
    """The picture in an uneven size as JPEG, WebP or PNG."""
    image = Image.fromarray(resize(pixels, uneven_size(rng, pixels.shape[1], pixels.shape[0])))
    stream = io.BytesIO()
    choice = rng.random()
    if choice < 0.85:
        image.save(stream, "JPEG", quality=80)
        return Media(kind="image", suffix="jpg", content=stream.getvalue())
    if choice < 0.97:
        image.save(stream, "WEBP", quality=80, method=0)
        return Media(kind="image", suffix="webp", content=stream.getvalue())
    image.save(stream, "PNG")
    return Media(kind="image", suffix="png", content=stream.getvalue())
