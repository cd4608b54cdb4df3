"""M-RoPE ids against the seeds' golden example and a loop that follows the rule word by word."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.positions import mrope_positions


def test_golden_clip_then_text() -> None:
    found = mrope_positions(17, [(0, (3, 2, 2))])
    assert found.tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7],
        [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 3, 4, 5, 6, 7],
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 3, 4, 5, 6, 7],
    ]


def test_text_after_a_clip_longer_than_its_grid_starts_after_its_time() -> None:
    assert mrope_positions(7, [(1, (5, 1, 1))])[:, -1].tolist() == [6, 6, 6]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), max_size=4))
def test_any_mixture_follows_the_rule(pieces: list[tuple[int, int, int, int]]) -> None:
    expected: list[tuple[int, int, int]] = []
    spans = []
    following = 0
    for text, time, height, width in pieces:
        expected += [(following + i,) * 3 for i in range(text)]
        following += text
        spans.append((len(expected), (time, height, width)))
        block = [
            (following + t, following + h, following + w)
            for t in range(time)
            for h in range(height)
            for w in range(width)
        ]
        expected += block
        following = max(max(ids) for ids in block) + 1
    expected += [(following + i,) * 3 for i in range(3)]
    assert np.array_equal(mrope_positions(len(expected), spans), np.array(expected).T)
