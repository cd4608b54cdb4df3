"""A loss or gradient that is no number, on one rank alone: every rank sees it before the update, and none updates."""

from pathlib import Path

import pytest

from tests.harness.not_finite import differing_tensors, wrong_ends, wrongly_recorded
from tests.harness.runs import make_data
from tests.prove.context import Worlds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["DP2", "TP2", "PP2"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_left_out_is_as_if_it_had_not_been(what: str, layout: str, precision: str, worlds: Worlds) -> None:
    differing, total = differing_tensors(worlds.run, what, layout, precision)
    assert differing == 0 and total > 50


@pytest.mark.parametrize("layout", ["DP2", "PP2"])
def test_more_in_a_row_than_allowed_stop_every_rank(layout: str, worlds: Worlds) -> None:
    assert wrong_ends(worlds.run, layout) == 0


def test_what_was_left_out_is_recorded_and_not_read_again(tmp_path: Path, worlds: Worlds) -> None:
    ((wrong, total),) = worlds.run(1, wrongly_recorded, folder=tmp_path, data=make_data(tmp_path / "data"))
    assert wrong == 0 and total == 7
