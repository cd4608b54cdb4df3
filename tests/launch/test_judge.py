"""When an answer is right, and what a constant answer gets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.answering.judge import constant_share, iou, is_correct, parse_box

BOX = "<|box_start|>(100,200),(300,400)<|box_end|>"


@pytest.mark.parametrize(
    ("metric", "expected", "given_answer", "right"),
    [
        ("exact", "7", " 7\n", True),
        ("exact", "7", "7.", False),
        ("exact", "7", "", False),
        ("iou", BOX, BOX, True),
        ("iou", BOX, "(100,200),(300,300)", True),  # half of it: 0.5 counts
        ("iou", BOX, "(100,200),(300,299)", False),
        ("iou", BOX, "(300,400),(100,200)", False),  # corners swapped: an empty box
        ("iou", BOX, "(100,200),(300", False),
        ("iou", BOX, "first (0,0),(9,9) then (100,200),(300,400)", True),
    ],
)
def test_judging(metric: str, expected: str, given_answer: str, right: bool) -> None:
    assert is_correct(metric, expected, given_answer) is right


def test_samples_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ValueError, match="no box"):
        is_correct("iou", "somewhere", BOX)
    with pytest.raises(ValueError, match="exact or iou"):
        is_correct("bleu", "a", "a")


boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20)).map(
    lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3])
)


@given(boxes, boxes)
def test_iou_is_a_count_of_shared_pixels(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    canvas = np.zeros((2, 41, 41), dtype=bool)
    for layer, (x1, y1, x2, y2) in enumerate((a, b)):
        canvas[layer, y1:y2, x1:x2] = True
    assert iou(a, b) == pytest.approx(canvas.all(axis=0).sum() / canvas.any(axis=0).sum())
    assert parse_box("({},{}),({},{})".format(*a)) == a


def test_the_best_constant_text_is_the_most_common() -> None:
    assert constant_share("exact", ["a", "b ", "b", "c"]) == 0.5


@settings(max_examples=30)
@given(st.lists(boxes, min_size=1, max_size=5))
def test_the_best_constant_box_is_found_among_all_pairs_of_edges(found: list[tuple[int, int, int, int]]) -> None:
    xs = sorted({x for box in found for x in box[::2]})
    ys = sorted({y for box in found for y in box[1::2]})
    candidates = [
        (x1, y1, x2, y2) for x1, x2 in itertools.combinations(xs, 2) for y1, y2 in itertools.combinations(ys, 2)
    ]
    best = max(sum(iou(box, other) >= 0.5 for other in found) for box in candidates) / len(found)
    assert constant_share("iou", ["({},{}),({},{})".format(*box) for box in found]) == pytest.approx(best)
