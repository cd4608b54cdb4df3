"""Every layout trains alike: loss, norm, every gradient at each of 5 steps, and every weight after them."""

from collections.abc import Callable

import pytest

from tests.harness.compare import Record, compare
from tests.harness.layouts import STAGES, train_on_layout
from tests.prove.context import LAYOUTS, Worlds


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", ["TP2xPP2", "DP2xPP2", "DP2xTP2", "TP2xPP2+SP"])
def test_layout_against_one_process(
    layout: str, stage: str, worlds: Worlds, one_process: Callable[[str], list[Record]]
) -> None:
    size, parallel = LAYOUTS[layout]
    records = worlds.run(size, train_on_layout, parallel=parallel, stage=stage)
    difference = compare(one_process(stage), records)
    assert len(records[0].losses) == 5 and difference.largest < 1e-5, difference


def test_the_comparison_sees_a_wrong_weight_and_a_missing_piece(one_process: Callable[[str], list[Record]]) -> None:
    (right,) = one_process("stage2")
    worse = [piece for piece in right.weights if "fc1.weight" in piece.name]
    moved = [
        type(piece)(name=piece.name, shape=piece.shape, offset=piece.offset, values=piece.values * (1 + 1e-4))
        for piece in worse
    ]
    # The right copy is there too, as on another rank: it must not hide the wrong one.
    wrong = type(right)(**{**vars(right), "weights": [*moved, *right.weights]})
    assert compare([right], [wrong]).weight > 5e-5
    lost = type(right)(**{**vars(right), "weights": right.weights[1:]})
    with pytest.raises(AssertionError, match="tensors differ"):
        compare([right], [lost])
