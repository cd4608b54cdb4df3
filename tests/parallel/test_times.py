"""A short look at what `make prove-parallel` times at length, in processor seconds where other jobs would decide."""

from tests.harness.peer_speed import race
from tests.harness.timing import Timing, busiest_ratio, in_turn, time_handshake, time_splits
from tests.prove.context import Worlds


def calls_in_turn() -> list[str]:
    order: list[str] = []
    found = in_turn(lambda: order.append("first"), lambda: order.append("second"), pairs=3, warmup=1)
    assert len(found.wall) == len(found.busy) == 3
    return order


def test_ways_take_turns_at_going_first(worlds: Worlds) -> None:
    (order,) = worlds.run(1, calls_in_turn)
    assert order == ["first", "second", "second", "first", "first", "second", "second", "first"]


def test_ratios_are_medians() -> None:
    one = Timing(wall=[(1.0, 2.0), (4.0, 2.0), (1.0, 0.5)], busy=[(1.0, 3.0)] * 3)
    other = Timing(wall=one.wall, busy=[(2.0, 1.0)] * 3)
    assert one.ratio == 0.5
    assert busiest_ratio([one, other]) == 1.5  # 3 seconds on one rank against 2 on the other


def test_announced_lengths_do_the_same_work_as_a_handshake(worlds: Worlds) -> None:
    ranks = worlds.run(2, time_handshake, pipeline=2, stage="stage2", pairs=3)
    assert [rank.different for rank in ranks] == [0, 0]
    assert ranks[0].timing.ratio < 1.5  # of three pairs, on a host that does other things too


def test_a_balanced_split_takes_work_from_the_busiest_rank(worlds: Worlds) -> None:
    ranks = worlds.run(2, time_splits, stage="stage2", vision=0.35, pairs=1)
    assert ranks[0].auto[0] < ranks[0].even[0]
    assert busiest_ratio([rank.timing for rank in ranks if rank.timing]) < 0.95


def test_mixed_lengths_are_taken_faster_than_in_padded_batches(worlds: Worlds) -> None:
    (found,) = worlds.run(1, race, lengths="mixed", batch=8, rows=1, pairs=2, samples=8)
    assert found.padding > 0.3 and found.loss < 1e-4
    assert busiest_ratio([found.timing]) < 1 / 1.1
