"""Learning rates are arithmetic on how much of a stage is done."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import StageConfig
from train.rates import part_rates, rate_factor, stage_progress


def stage(**changes: Any) -> StageConfig:
    values: dict[str, Any] = {
        "name": "stage2",
        "trainable": ("vision", "language"),
        "learning_rates": {"vision": 1e-5, "language": 4e-5},
        "steps": 100,
        "warmup": 0.1,
    }
    return StageConfig(**{**values, **changes})


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warmup_climbs_evenly_to_the_peak(schedule: str) -> None:
    made = stage(schedule=schedule)
    factors = [rate_factor(made, stage_progress(made, step, 0)) for step in range(1, 11)]
    assert factors == pytest.approx([step / 10 for step in range(1, 11)])


def test_curves_after_warmup() -> None:
    middle, end = 0.55, 1.0
    cosine, linear, constant = (stage(schedule=name) for name in ("cosine", "linear", "constant"))
    assert rate_factor(cosine, middle) == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate_factor(linear, middle) == pytest.approx(0.1 + 0.9 * 0.5)
    quarter = 0.1 + 0.9 / 4
    assert rate_factor(cosine, quarter) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_factor(linear, quarter) == pytest.approx(0.1 + 0.9 * 0.75)
    assert rate_factor(cosine, end) == pytest.approx(0.1) and rate_factor(linear, end) == pytest.approx(0.1)
    assert rate_factor(constant, middle) == rate_factor(constant, end) == 1.0


def test_no_warmup_starts_at_the_peak() -> None:
    assert rate_factor(stage(warmup=0.0), 0.0) == 1.0


def test_a_stage_of_warmup_alone_ends_at_its_peak_or_below() -> None:
    assert rate_factor(stage(warmup=1.0), 0.999) == pytest.approx(0.999)
    assert math.isfinite(rate_factor(stage(warmup=1.0), 1.0))


def test_every_part_has_its_own_peak() -> None:
    rates = part_rates(stage(schedule="constant"), 0.5)
    assert rates == {"vision": 1e-5, "language": 4e-5}


def test_a_length_in_tokens_counts_tokens_and_not_steps() -> None:
    made = stage(steps=None, tokens=1000)
    assert stage_progress(made, 10**6, 250) == 0.25
    assert stage_progress(made, 1, 2000) == 1.0
    assert stage_progress(stage(), 50, 10**9) == 0.5


@given(st.lists(st.integers(1, 300), min_size=4, max_size=40), st.data())
def test_a_resume_does_not_bend_the_curve(sizes: list[int], data: st.DataObject) -> None:
    """Rates depend on the counters that a checkpoint holds, so where a run was cut cannot show."""
    made = stage(steps=None, tokens=sum(sizes))
    cut = data.draw(st.integers(1, len(sizes) - 1))
    straight = [rate_factor(made, stage_progress(made, n + 1, sum(sizes[: n + 1]))) for n in range(len(sizes))]
    step, tokens = cut, sum(sizes[:cut])  # what the checkpoint says
    resumed = []
    for size in sizes[cut:]:
        step, tokens = step + 1, tokens + size
        resumed.append(rate_factor(made, stage_progress(made, step, tokens)))
    assert straight[cut:] == resumed
    assert all(0.0 < factor <= 1.0 for factor in straight)
