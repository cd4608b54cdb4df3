"""What `make prove-parallel` times at length: here what is done, counted, and no seconds of a host that others use."""

from tests.harness.counting import Work
from tests.harness.peer_speed import race
from tests.harness.timing import Timing, busiest_ratio, busiest_work, in_turn, time_handshake, time_splits
from tests.prove.context import Worlds


def calls_in_turn() -> list[str]:
    order: list[str] = []
    found = in_turn(lambda: order.append("first"), lambda: order.append("second"), pairs=3)
    assert len(found.wall) == len(found.busy) == 3
    return order


def test_ways_take_turns_at_going_first(worlds: Worlds) -> None:
    (order,) = worlds.run(1, calls_in_turn)
    assert order[:2] == ["first", "second"]  # to count
    assert order[2:] == ["first", "second", "second", "first", "first", "second", "second", "first"]


def test_ratios_are_medians() -> None:
    work = Work(flops=10, sends=2), Work(flops=8, sends=1)
    one = Timing(work=work, wall=[(1.0, 2.0), (4.0, 2.0), (1.0, 0.5)], busy=[(1.0, 3.0)] * 3)
    other = Timing(work=work[::-1], wall=one.wall, busy=[(2.0, 1.0)] * 3)
    assert one.ratio == 0.5
    assert busiest_ratio([one, other]) == 1.5  # 3 seconds on one rank against 2 on the other
    assert busiest_work([one]) == 0.8 and busiest_work([one, other]) == 1.0


def test_announced_lengths_do_the_same_work_as_a_handshake_with_fewer_messages(worlds: Worlds) -> None:
    ranks = worlds.run(2, time_handshake, pipeline=2, stage="stage2", pairs=0)
    assert [rank.different for rank in ranks] == [0, 0]
    for rank in ranks:
        asked, announced = rank.timing.work
        assert asked.flops == announced.flops > 0
        assert asked.sends == 2 * announced.sends > 0  # a shape before every tensor


def test_a_balanced_split_takes_work_from_the_busiest_rank(worlds: Worlds) -> None:
    ranks = worlds.run(2, time_splits, stage="stage2", vision=0.35, pairs=0, microbatches=4)
    assert ranks[0].auto[0] < ranks[0].even[0]
    timings = [rank.timing for rank in ranks if rank.timing]
    even, auto = (sum(timing.work[way].flops for timing in timings) for way in (0, 1))
    assert even == auto
    assert busiest_work(timings) < 0.95


def test_mixed_lengths_are_less_work_than_in_padded_batches(worlds: Worlds) -> None:
    (found,) = worlds.run(1, race, lengths="mixed", batch=8, rows=1, pairs=0, samples=8)
    assert found.padding > 0.3 and found.loss < 1e-4
    assert busiest_work([found.timing]) < 1 / 1.1
