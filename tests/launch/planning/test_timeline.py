"""The order of 1F1B, and what follows from it, against megatron-core's own table and textbook numbers."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.pipeline_parallel.schedules import get_schedule_table

from launch.planning.timeline import Pass, most_held, passes, simulate


def test_the_order_of_three_stages_is_that_of_the_paper() -> None:
    told = [" ".join(f"{'FB'[step.backward]}{step.microbatch}" for step in passes(rank, 3, 1, 4)) for rank in range(3)]
    assert told == ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]


@given(stages=st.integers(1, 6), chunks=st.integers(1, 3), groups=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_every_pass_comes_once_and_forward_passes_follow_the_table(stages: int, chunks: int, groups: int) -> None:
    microbatches = stages * groups
    for rank in range(stages):
        order = passes(rank, stages, chunks, microbatches)
        assert len(order) == len(set(order)) == 2 * microbatches * chunks
        forward = [(step.microbatch, step.chunk) for step in order if not step.backward]
        assert forward == [tuple(entry) for entry in get_schedule_table(microbatches, chunks, stages)]
        seen: set[Pass] = set()
        for step in order:
            assert not step.backward or Pass(microbatch=step.microbatch, chunk=step.chunk) in seen
            seen.add(step)


@pytest.mark.parametrize(("stages", "microbatches"), list(itertools.product((1, 2, 4, 8), (1, 3, 8, 32))))
def test_equal_passes_leave_the_bubble_of_the_paper(stages: int, microbatches: int) -> None:
    """(p - 1) / (m + p - 1) of the time, whatever a backward pass costs (arXiv 2104.04473, section 2.2)."""
    line = simulate(stages, 1, microbatches, lambda rank, step: 2.0 if step.backward else 1.0)
    assert line.bubble == pytest.approx((stages - 1) / (microbatches + stages - 1))


@pytest.mark.parametrize("chunks", [2, 3])
def test_interleaving_divides_the_bubble_by_the_chunks(chunks: int) -> None:
    stages, microbatches = 4, 8
    line = simulate(stages, chunks, microbatches, lambda rank, step: (2.0 if step.backward else 1.0) / chunks)
    filling = (stages - 1) / chunks
    assert line.bubble == pytest.approx(filling / (microbatches + filling))


def test_a_stage_holds_as_many_microbatches_as_come_after_it() -> None:
    for rank in range(4):
        assert most_held(passes(rank, 4, 1, 16), lambda step: 1) == 4 - rank
    assert most_held(passes(0, 4, 1, 2), lambda step: 1) == 2
    assert most_held(passes(0, 4, 1, 16), lambda step: 100 if step.microbatch == 7 else 1) == 103


def test_a_long_row_holds_up_all_stages() -> None:
    even = simulate(2, 1, 4, lambda rank, step: 1.0)
    long = simulate(2, 1, 4, lambda rank, step: 3.0 if step.microbatch == 2 else 1.0)
    assert long.seconds > even.seconds + 4 and sum(long.busy) == sum(even.busy) + 8


def test_messages_take_their_time() -> None:
    line = simulate(2, 1, 1, lambda rank, step: 1.0, lambda microbatch: 0.5)
    assert line.seconds == 5.0 and line.busy == (2.0, 2.0)
