"""Cases 1 to 13 of object storage: the same samples in the same order, or a fatal error that says where.

8 is in test_oss_keys.py, 11 in test_oss.py. Here nothing is uploaded, so of 7 there is what a reader meets.
"""

import pytest

from tests.harness.oss_cases import CASES, CRC_ONLY, run_case
from tests.harness.oss_leaks import left_behind
from tests.harness.oss_limits import storm

RUN_LENGTHS = [(name, 4) for name in CASES] + [(name, 1) for name in CRC_ONLY]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("name", "run_length"), RUN_LENGTHS)
def test_a_fault_costs_no_sample(name: str, run_length: int) -> None:
    fatal, kinds = bool(CASES[name].fatal), {fault.get("kind") for fault in CASES[name].faults}
    # A busy host may take its time for a whole answer, and a try more would be counted.
    read_seconds = 0.5 if kinds & {"stall", "drip", "silence"} else 20.0
    found = run_case(name, run_length, deadline_seconds=4.0 if fatal else 60.0, read_seconds=read_seconds)
    outcome = found.outcome
    assert (outcome.lost, outcome.repeated, outcome.other, found.missing_words) == (0, 0, 0, 0), outcome.error
    assert bool(outcome.error) == fatal
    assert (found.unasked, found.miscounted) == (0, 0)
    assert outcome.wrong_below == 0 or name in CRC_ONLY
    assert found.asked_again == 0 or name != "cut body"


@pytest.mark.timeout(200)
def test_readers_that_stop_in_a_body_leave_nothing() -> None:
    """Case 12."""
    assert left_behind(stall=0.8) == {"bytes of noise": 0, "connections left": 0, "processes left": 0}


@pytest.mark.timeout(200)
def test_readers_that_are_always_refused_ask_little() -> None:
    """Case 1: 16 first requests, 20 retries that a node has to begin with, and one a second. Without limits 80."""
    found = storm(seconds=2.0)
    assert found["requests"] <= 60 and found["most in a tenth of a second"] <= 8
