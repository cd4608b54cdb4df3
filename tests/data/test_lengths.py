"""Lengths of whole columns against the rule for one picture."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.plan.lengths import _add_up
from data.visual.images import fitted_sides


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=20),
    st.sampled_from([14, 28, 32]),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)
def test_the_compiled_rule_is_the_rule(sizes: list[tuple[int, int]], factor: int, least: int, more: int) -> None:
    # Halves of the factor are where two roundings would part.
    sizes = [*sizes, *((factor * n + factor // 2, factor * (n + 1) + factor // 2) for n in range(4))]
    height, width = np.array(sizes, dtype="<u4").T.copy()
    count = len(sizes)
    text, ends, clips = np.full(count, 3, "<u4"), np.arange(1, count + 1, dtype="<u8"), np.zeros(0, np.int64)
    tokens, pixels = np.empty(count, np.int64), np.empty(count, np.int64)
    rules = (4000, factor, least, least + more, 1, 4)  # any aspect; a patch is a pixel
    assert _add_up(text, ends, np.ones(count, bool), height, width, clips, *rules, tokens, pixels) == -1
    sides = [fitted_sides(h, w, factor, least, least + more) for h, w in sizes]
    assert pixels.tolist() == [rows * columns for rows, columns in sides]
    assert tokens.tolist() == [3 + rows * columns // 4 for rows, columns in sides]
