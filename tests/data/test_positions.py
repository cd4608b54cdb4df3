"""M-RoPE ids against the golden example, a loop that follows the rule word by word, and transformers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.encoding.positions import mrope_positions
from tests.prove.model_data_measures import Piece, lay_out, transformers_positions


def test_golden_clip_then_text() -> None:
    found = mrope_positions(17, [(0, (3, 2, 2))])
    assert found.tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7],
        [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 3, 4, 5, 6, 7],
        [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 3, 4, 5, 6, 7],
    ]


def test_text_after_a_clip_longer_than_its_grid_starts_after_its_time() -> None:
    assert mrope_positions(7, [(1, (5, 1, 1))])[:, -1].tolist() == [6, 6, 6]
    # 5 time steps of 2 x 3 tokens from 2 on: the largest id is 6 (time), so text goes on at 7; wide as it is, not at 5.
    found = mrope_positions(2 + 30 + 3, [(2, (5, 2, 3))])
    assert found[:, 2:32].max(axis=1).tolist() == [6, 3, 4]
    assert found[:, 32:].tolist() == [[7, 8, 9]] * 3


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


pieces = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4
)


@given(pieces)
def test_positions_are_those_of_transformers_where_no_clip_outlasts_its_grid(pieces: list[Piece]) -> None:
    same = [(text, min(time, max(height, width)), height, width) for text, time, height, width in pieces]
    assert np.array_equal(mrope_positions(*lay_out(same)), transformers_positions(same))


@pytest.mark.parametrize(
    ("grid", "ours", "theirs"),
    [((5, 1, 1), 6, 2), ((5, 2, 3), 6, 4), ((4, 3, 2), 5, 4)],
)
def test_transformers_goes_on_by_height_and_width_alone(grid: tuple[int, int, int], ours: int, theirs: int) -> None:
    """After one word and a clip. If transformers changes its rule this fails, and then it is no exception any more."""
    piece = [(1, *grid)]
    count, spans = lay_out(piece)
    expected, found = mrope_positions(count, spans), transformers_positions(piece)
    assert expected[:, -3:].tolist() == [[ours, ours + 1, ours + 2]] * 3
    assert found[:, -3:].tolist() == [[theirs, theirs + 1, theirs + 2]] * 3
    assert np.array_equal(found[:, :-3], expected[:, :-3]), "up to the end of the clip they agree"
