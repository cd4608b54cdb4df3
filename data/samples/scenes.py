"""Photographs that ship inside scikit-image and scikit-learn, cut into tiles; a quarter of the tiles is held out.

A crop never leaves its tile, so no pixel of a held-out sample's scene is ever seen in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

from data.samples.splits import Split, is_heldout

# name in captions -> (package, file). scikit-image's registry lists more, but only these are in its wheel.
PHOTOS = {
    "bricks": ("skimage", "data/brick.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "cells": ("skimage", "data/ihc.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
}
SCENES = tuple(PHOTOS)
TILES = 4  # a photograph is cut into TILES x TILES


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A crop. box: (left, top, right, bottom) in pixels of the photograph; pixels: uint8 (height, width, 3)."""

    name: str
    box: tuple[int, int, int, int]
    pixels: np.ndarray


@cache
def photo(name: str) -> Image.Image:
    """The whole photograph, RGB."""
    package, path = PHOTOS[name]
    with files(package).joinpath(path).open("rb") as stream:
        return Image.open(stream).convert("RGB")


@cache
def tiles(split: Split) -> tuple[tuple[int, int], ...]:
    """(row, column) of the tiles of the split: each row gives one held-out tile, never two that touch by a side."""
    held = {(row, (1 + 2 * row) % TILES) for row in range(TILES)}
    every = [(row, column) for row in range(TILES) for column in range(TILES)]
    return tuple(tile for tile in every if (tile in held) == is_heldout(split))


def draw_scene(rng: np.random.Generator, split: Split, name: str, width: int, height: int) -> Scene:
    """A random crop of the photograph inside one tile, resized to (width, height) pixels."""
    whole = photo(name)
    row, column = tiles(split)[int(rng.integers(len(tiles(split))))]
    left, right = column * whole.width // TILES, (column + 1) * whole.width // TILES
    top, bottom = row * whole.height // TILES, (row + 1) * whole.height // TILES
    fit = min((right - left) / width, (bottom - top) / height) * rng.uniform(0.75, 1.0)
    crop_width, crop_height = max(1, int(width * fit)), max(1, int(height * fit))
    x = left + int(rng.integers(right - left - crop_width + 1))
    y = top + int(rng.integers(bottom - top - crop_height + 1))
    box = (x, y, x + crop_width, y + crop_height)
    # Cropped first: resize(box=...) would let the filter look over the edge of the tile.
    pixels = np.asarray(whole.crop(box).resize((width, height), Image.Resampling.BILINEAR))
    return Scene(name=name, box=box, pixels=pixels)


def any_scene(rng: np.random.Generator, split: Split, width: int, height: int) -> Scene:
    """A crop of a photograph chosen at random."""
    return draw_scene(rng, split, SCENES[int(rng.integers(len(SCENES)))], width, height)
