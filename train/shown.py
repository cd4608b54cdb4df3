"""Held-out samples as an evaluation shows them: what was asked, with its pictures, and what the model answered."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from data.config import ImageConfig
from data.types import Bytes, Float32, Grid
from data.visual.images import unpatched

MOST_FRAMES = 3  # of a clip: first, middle, last
LONGEST_SIDE = 224  # pixels of a picture as it is kept; a table of 16 samples is then well below a megabyte


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One line of the table."""

    source: str
    sample: str
    """By which it is found again, as SOURCE:NUMBER."""
    prompt: str
    expected: str
    answer: str
    right: bool | None = None
    """None where nothing decides that."""
    loss: float | None = None
    """Mean over the expected tokens."""
    pictures: tuple[Bytes, ...] = ()
    """uint8 (height, width, 3), as `pictures_of` has them."""

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; pictures as PNG in base64."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "pictures"}
        return plain | {"pictures": [base64.b64encode(png(picture)).decode("ascii") for picture in self.pictures]}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Shown":
        """Inverse of `to_dict`."""
        pictures = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in told["pictures"]]
        plain = {key: value for key, value in told.items() if key != "pictures"}
        return cls(**plain, pictures=tuple(np.asarray(picture, dtype=np.uint8) for picture in pictures))


def pictures_of(patches: Float32, grids: Sequence[Grid], config: ImageConfig) -> tuple[Bytes, ...]:
    """What the model was shown, without decoding it again: a picture, or MOST_FRAMES frames of a clip, for each grid.

    Args:
        patches: (P, D) of a sample's grids, one after the other.
    """
    found: list[Bytes] = []
    place = 0
    for grid in grids:
        frames = unpatched(patches[place : place + grid.num_patches], grid, config)
        place += grid.num_patches
        # A still fills all frames of its one temporal patch.
        chosen = [0] if grid.time == 1 else np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int)
        found += [_small(frames[number]) for number in chosen]
    return tuple(found)


def png(picture: Bytes) -> bytes:
    """A picture (height, width, 3) as a file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _small(picture: Bytes) -> Bytes:
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image, dtype=np.uint8)
