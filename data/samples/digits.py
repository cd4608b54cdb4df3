"""Handwritten digits: scikit-learn's 1797 scans of 8x8 grey levels, drawn as ink on a paper card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from data.samples.splits import Split, is_heldout

CARD = 28  # pixels; one visual token of a 14 px patch, 2x2 merge tower
HELDOUT_PER_DIGIT = 30
SPLIT_SEED = 1797  # not the user's seed: what is held out must not move when the data are made again


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One drawn scan. pixels: uint8 (CARD, CARD, 3)."""

    digit: int
    scan: int
    pixels: np.ndarray


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


def scan_images() -> np.ndarray:
    """Every scan, uint8 (1797, 8, 8), ink bright; a scan's number is its place here."""
    return _scans()[0]


@cache
def scan_ids(split: Split) -> tuple[tuple[int, ...], ...]:
    """Scan numbers of the split, one tuple for each digit 0-9."""
    _, labels = _scans()
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        part = order[:HELDOUT_PER_DIGIT] if is_heldout(split) else order[HELDOUT_PER_DIGIT:]
        chosen.append(tuple(int(i) for i in part))
    return tuple(chosen)


def draw_card(rng: np.random.Generator, split: Split, digit: int) -> Card:
    """A random scan of `digit`, slightly turned, moved and scaled, in dark ink on light paper."""
    ids = scan_ids(split)[digit]
    scan = ids[int(rng.integers(len(ids)))]
    image = Image.fromarray(scan_images()[scan])
    # Output pixel -> scan pixel: about 3 px of paper stay free around the ink, as on a real card.
    scale = 8 / (CARD - 4) * rng.uniform(0.94, 1.06)
    angle = np.deg2rad(rng.uniform(-8, 8))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    middle = CARD / 2 + rng.uniform(-1.0, 1.0, size=2)
    matrix = (cos, sin, 4 - cos * middle[0] - sin * middle[1], -sin, cos, 4 + sin * middle[0] - cos * middle[1])
    ink = np.asarray(image.transform((CARD, CARD), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
    alpha = (ink.astype(np.float32) / 255)[:, :, None]
    paper = rng.uniform(225, 255, size=3)
    colour = rng.uniform(0, 60, size=3)
    return Card(digit=digit, scan=scan, pixels=np.round(paper * (1 - alpha) + colour * alpha).astype(np.uint8))
