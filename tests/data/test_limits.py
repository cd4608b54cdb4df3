"""A run ends in the step in which too many samples were bad, and in none before."""

from tests.harness.limits import limit_faults


def test_the_limits_for_bad_samples_strike_when_they_are_due() -> None:
    *faults, runs = limit_faults()
    assert faults == [0, 0, 0] and runs == 18
