"""Pictures of the sample table are those that the model saw."""

import base64
import io

import numpy as np
from PIL import Image

from data.types import Grid
from data.visual.images import normalisation_table, patchify
from tests.data.conftest import IMAGE
from train.shown import LONGEST_SIDE, MOST_FRAMES, Shown, pictures_of


def test_pictures_come_back_from_patches() -> None:
    still = np.random.default_rng(0).integers(0, 256, (1, 28, 56, 3), dtype=np.uint8)
    clip = np.stack([np.full((56, 28, 3), 60 * number, dtype=np.uint8) for number in range(4)])
    grids = [Grid(time=1, height=28, width=56, patch_size=14, merge_size=2)]
    grids.append(Grid(time=2, height=56, width=28, patch_size=14, merge_size=2))
    patches = np.empty((sum(grid.num_patches for grid in grids), IMAGE.patch_dim), dtype=np.float32)
    place = grids[0].num_patches
    patchify(still, IMAGE, normalisation_table(IMAGE), patches[:place])
    patchify(clip, IMAGE, normalisation_table(IMAGE), patches[place:])
    shown = pictures_of(patches, grids, IMAGE)
    assert len(shown) == 1 + MOST_FRAMES and np.array_equal(shown[0], still[0])
    assert [int(frame.mean()) for frame in shown[1:]] == [0, 120, 180]


def test_a_large_picture_is_kept_small_and_as_a_file() -> None:
    grid = Grid(time=1, height=560, width=1120, patch_size=14, merge_size=2)
    patches = np.zeros((grid.num_patches, IMAGE.patch_dim), dtype=np.float32)
    (small,) = pictures_of(patches, [grid], IMAGE)
    assert small.shape == (LONGEST_SIDE // 2, LONGEST_SIDE, 3)
    told = Shown(source="s", sample="s:1", prompt="p", expected="e", answer="a", pictures=(small,)).to_dict()
    stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["pictures"][0]))))
    assert np.array_equal(stored, small)
