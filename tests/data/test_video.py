"""Which frames of a clip are taken and at what size; decoding them is in test_decode.py."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import ImageConfig, VideoConfig
from data.encoding.encode import media_grid
from data.types import MediaSize
from data.visual.video import choose_frames, choose_num_frames, frame_size, video_grid
from tests.prove.model_data_golden import GOLDEN_CLIPS

DEFAULT = VideoConfig()


@pytest.mark.parametrize(
    ("frames", "fps", "expected"),
    [(300, 30.0, 20), (301, 30.0, 20), (10, 30.0, 4), (3, 30.0, 2), (1, 30.0, 2), (90000, 25.0, 768), (50, 0.5, 50)],
)
def test_frame_counts(frames: int, fps: float, expected: int) -> None:
    assert choose_num_frames(frames, fps, DEFAULT) == expected


@given(st.integers(1, 10**6), st.floats(0.1, 240))
def test_frames_are_even_ordered_and_spread_from_first_to_last(frames: int, fps: float) -> None:
    chosen = choose_frames(frames, fps, DEFAULT)
    count = len(chosen)
    assert count % 2 == 0 and count <= DEFAULT.max_frames
    exact = [round(Fraction(i * (frames - 1), count - 1)) for i in range(count)]
    assert chosen.tolist() == exact


@given(
    st.integers(1, 4000),
    st.floats(1 / 200, 200),
    st.integers(1, 10**6),
    st.floats(0.1, 240),
    st.integers(4, 20000),
    st.sampled_from([4, 768, None]),
)
def test_no_clip_passes_its_token_cap(
    side: int, aspect: float, frames: int, fps: float, cap: int, most: int | None
) -> None:
    height, width = side, max(1, round(side * aspect))
    if max(height, width) > 200 * min(height, width):
        return
    video = VideoConfig(max_tokens=cap, max_frames=most)
    grid = video_grid(frames, fps, height, width, ImageConfig(), video)
    assert grid.height % 28 == 0 and grid.width % 28 == 0
    assert grid.num_tokens <= cap
    # min_pixels asks for 128 tokens, so whatever has less was shrunk: never below 4.
    assert grid.num_tokens // grid.time >= 4
    chosen = choose_frames(frames, fps, video)
    assert len(chosen) == 2 * grid.time, "frames taken and grid planned are decided in one place"
    if frames > 1:
        assert chosen[0] == 0 and chosen[-1] == frames - 1
        assert np.ptp(np.diff(chosen)) <= 1, "evenly"


@pytest.mark.parametrize(("frames", "most", "height", "width", "taken", "merged"), GOLDEN_CLIPS)
def test_golden_clips(frames: int, most: int | None, height: int, width: int, taken: int, merged: tuple) -> None:
    video = VideoConfig(max_frames=most)
    size = MediaSize(kind="video", height=height, width=width, frames=frames, fps=30.0)
    grid = media_grid(size, ImageConfig(), video)
    assert grid.merged == merged
    assert len(choose_frames(frames, 30.0, video)) == taken
    # A clip on its side is the same on its side.
    assert video_grid(frames, 30.0, width, height, ImageConfig(), video).merged == (merged[0], merged[2], merged[1])


def test_the_docs_table_of_clips_is_right() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data_format.md").read_text()
    lengths = {"1 frame": 1, "2 s": 60, "128 s": 3840, "129 s": 3870, "25 min": 45000, "3 h": 324000}
    rows = text.split("| 720x1280 at 30 frames a second |")[1].split("\n\n")[0].splitlines()[2:]
    seen = 0
    for row in rows:
        label, taken, temporal, size, tokens = (cell.strip() for cell in row.strip("|").split("|"))
        names, _, unlimited = label.partition(", `max_frames: null`")
        video = VideoConfig(max_frames=None if label != names else 768)
        assert not unlimited
        for name in names.split(", and "):
            seen += 1
            grid = video_grid(lengths[name], 30.0, 720, 1280, ImageConfig(), video)
            found = (choose_num_frames(lengths[name], 30.0, video), grid.time, f"{grid.height}x{grid.width}")
            assert (*map(str, found), str(grid.num_tokens)) == (taken, temporal, size, tokens)
    assert seen == 8


def test_small_caps_keep_four_tokens_of_the_nearest_shape() -> None:
    shapes = {}
    for cap in range(4, 10):
        rows, columns = frame_size(720, 1280, 2, ImageConfig(), VideoConfig(max_tokens=cap))
        shapes[cap] = (rows // 28, columns // 28)
    # 6: rounding down gives 1 x 3; 2 x 3 is the nearest shape to 9:16 that 6 tokens allow, and 5 allow only 2 x 2.
    assert shapes == {4: (2, 2), 5: (2, 2), 6: (2, 3), 7: (2, 3), 8: (2, 3), 9: (2, 4)}


def test_the_cap_wins_over_min_frames_and_a_cap_below_four_is_refused() -> None:
    video = VideoConfig(max_tokens=9, min_frames=6)
    assert video_grid(300, 30.0, 720, 1280, ImageConfig(), video).merged == (2, 2, 2)
    with pytest.raises(ValueError, match="max_tokens is 3, a clip needs at least 4"):
        VideoConfig(max_tokens=3)


def test_frame_sizes_follow_the_written_rules() -> None:
    # 16 frames of 720p: 768 * 28 * 28 pixels each are allowed, 720x1280 -> floor of 720 / 1.2372 and 1280 / 1.2372.
    shrink = math.sqrt(720 * 1280 / (768 * 784))
    assert frame_size(720, 1280, 16, ImageConfig(), DEFAULT) == (
        math.floor(720 / shrink / 28) * 28,
        math.floor(1280 / shrink / 28) * 28,
    )
    # 768 frames: the rules alone would give 1.05 * 128 tokens a frame, 51609 in all; the cap leaves 42 a pair.
    grid = video_grid(768 * 15, 30.0, 720, 1280, ImageConfig(), DEFAULT)
    assert grid.num_tokens <= 16384 and grid.time == 384 and grid.num_tokens // grid.time >= 28
    # Small frames grow to min_pixels.
    assert frame_size(48, 64, 4, ImageConfig(), DEFAULT) == (280, 392)


def test_a_temporal_patch_of_one_frame_takes_a_clip_of_one() -> None:
    assert choose_frames(1, 30.0, VideoConfig(), 1).tolist() == [0]
