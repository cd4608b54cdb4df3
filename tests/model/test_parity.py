"""Loss, logits and every gradient of a transformers Qwen2-VL whose weights were imported through a folder."""

import pytest

from tests.harness.parity import CASES, measure_parity
from tests.prove.context import Worlds
from tests.prove.measures import planted, wrong_positions


@pytest.mark.parametrize("tied", [True, False])
def test_parity(tied: bool, worlds: Worlds) -> None:
    (errors,) = worlds.run(1, measure_parity, tied=tied)
    assert errors.keys() == CASES.keys()
    assert all(error.largest < 1e-5 for error in errors.values()), errors


@pytest.mark.parametrize("plant", ["swapped_norms", "across_samples", "no_causal_mask", "label_mask_announced"])
def test_parity_sees(plant: str, worlds: Worlds) -> None:
    arguments = {"tied": False, "cases": ["a packed row of all"]}
    (errors,) = worlds.run(1, planted, plant=plant, measure=measure_parity, arguments=arguments)
    assert errors["a packed row of all"].largest > 1e-3


def test_positions_start_anew_in_every_sample(worlds: Worlds) -> None:
    ((wrong, total),) = worlds.run(1, wrong_positions)
    assert wrong == 0 and total > 50
    ((wrong, _),) = worlds.run(1, planted, plant="packed_positions", measure=wrong_positions, arguments={})
    assert wrong > 0
