"""Boxes both ways: what is written, what is read back, and what is refused."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.encoding.grounding import Grounded, box_text, find_boxes, part_text, thousandths, unscaled
from data.encoding.render import render_sample
from data.errors import FormatError
from tests.harness.chat_strategies import boxes

CAT = "<|object_ref_start|>the cat<|object_ref_end|>"
BOX = "<|box_start|>(100,250),(500,999)<|box_end|>"


@pytest.mark.parametrize(
    ("box", "scale", "expected"),
    [
        ([0.1, 0.25, 0.5, 1], 1, (100, 250, 500, 999)),
        ([100, 250, 500, 1000], 1000, (100, 250, 500, 999)),
        ([64, 120, 320, 480], [640, 480], (100, 250, 500, 999)),
        ([0.4, 0.5, 1.4, 1.5], 1000, (0, 1, 1, 2)),  # halves go up
        ([3, 0, 4, 1], [4000, 2], (1, 0, 1, 500)),  # thinner than a thousandth
        ([1, 0, 1, 500], 1000, (1, 0, 1, 500)),
    ],
)
def test_pixels_shares_and_thousandths_are_written_alike(box: Any, scale: Any, expected: Any) -> None:
    x1, y1, x2, y2 = expected
    assert thousandths(box, scale) == expected
    assert box_text(box, scale) == f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


@settings(max_examples=300, derandomize=True)
@given(drawn=boxes())
def test_a_box_comes_back_within_half_a_thousandth(drawn: dict[str, Any]) -> None:
    box, scale = drawn["box"], drawn["scale"]
    (found,) = find_boxes(part_text({"type": "box", **drawn}))
    sides = [scale] * 4 if isinstance(scale, int) else scale * 2
    for value, back, side in zip(box, unscaled(found.box, scale), sides, strict=True):
        # Only the far edge itself, 1000, has no number of its own.
        allowed = Fraction(1, 2000) if value < side * Fraction(9995, 10000) else Fraction(1, 1000)
        assert abs(Fraction(back) / side - Fraction(value) / side) <= allowed + Fraction(1, 10**12)
    assert thousandths(found.box, 1000) == found.box


@settings(max_examples=100, derandomize=True)
@given(
    corners=st.lists(st.integers(0, 999), min_size=4, max_size=4, unique=True),
    sides=st.tuples(*[st.integers(1, 9000)] * 2),
)
def test_what_a_model_wrote_survives_pixels(corners: list[int], sides: tuple[int, int]) -> None:
    x, y = sorted(corners[:2]), sorted(corners[2:])
    box = (x[0], y[0], x[1], y[1])
    assert thousandths(unscaled(box, sides), sides) == box
    assert find_boxes(box_text(box, 1000)) == [Grounded(box=box, reference=None)]


def test_boxes_are_read_with_the_reference_before_them() -> None:
    other = "<|box_start|>(1,2),(3,4)<|box_end|>"
    found = find_boxes(f"Here: {CAT}{BOX}{other} and {other}, {CAT} is at {BOX}")
    assert [(one.reference, one.box) for one in found] == [
        ("the cat", (100, 250, 500, 999)),
        ("the cat", (1, 2, 3, 4)),
        (None, (1, 2, 3, 4)),
        (None, (100, 250, 500, 999)),
    ]


@pytest.mark.parametrize(
    "text",
    ["(1,2),(3,4)", "<|box_start|>(1,2),(3,4)", "<|box_start|>(1,2)<|box_end|>", "<|box_start|>(9,2),(3,4)<|box_end|>",
     "<|box_start|>(1,2),(1000,4)<|box_end|>", "<|box_start|>(-1,2),(3,4)<|box_end|>"],
)  # fmt: skip
def test_half_a_box_is_none(text: str) -> None:
    assert find_boxes(text) == []


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "box", "box": [1, 2, 3], "scale": 1000}, "four numbers"),
        ({"type": "box", "box": [1, 2, 3, "4"], "scale": 1000}, "four numbers"),
        ({"type": "box", "box": [True, 2, 3, 4], "scale": 1000}, "four numbers"),
        ({"type": "box", "box": [0, 0, float("nan"), 1], "scale": 1}, "four numbers"),
        ({"type": "box", "box": [1, 2, 3, 4]}, "the scale of a box"),
        ({"type": "box", "box": [1, 2, 3, 4], "scale": "pixel"}, "the scale of a box"),
        ({"type": "box", "box": [1, 2, 3, 4], "scale": [640]}, "the scale of a box"),
        ({"type": "box", "box": [1, 2, 3, 4], "scale": [640, 0]}, "the scale of a box"),
        ({"type": "box", "box": [1, 2, 3, 4], "scale": True}, "the scale of a box"),
        ({"type": "box", "box": [3, 2, 1, 4], "scale": 1000}, "left < right"),
        ({"type": "box", "box": [1, 4, 3, 2], "scale": 1000}, "top < bottom"),
        ({"type": "box", "box": [1, 2, 1, 4], "scale": [640, 480]}, "left < right"),
        ({"type": "box", "box": [0, 0, 0, 0], "scale": 1}, "left < right"),
        ({"type": "box", "box": [1, 2, 700, 4], "scale": [640, 480]}, r"right <= 640.*\[x, y, width, height\]"),
        ({"type": "box", "box": [-1, 2, 3, 4], "scale": 1000}, "0 <= left"),
        ({"type": "box", "box": [10, 20, 30, 40], "scale": 1}, "right <= 1"),
        ({"type": "ref"}, "needs `text`"),
        ({"type": "ref", "text": "cat<|object_ref_end|>"}, "the token that ends"),
    ],
)
def test_a_box_that_cannot_be_meant_is_refused(part: dict[str, Any], told: str) -> None:
    for sample in ({"parts": [part]}, {"messages": [{"role": "assistant", "content": [part]}]}):
        with pytest.raises(FormatError, match=told):
            render_sample(sample)
