"""Speeds of the axes: who is measured with whom, and what stands out."""

import time
from typing import Any

import torch.distributed as dist

from parallel import links
from parallel.config import ParallelConfig
from parallel.links import Effort, Speed, measure, slow
from parallel.world import model_parallel, pick_device
from tests.prove.context import Worlds
from tests.prove.planting import replace_name

EFFORT = Effort(nbytes=1 << 18, repeats=3, pairs=True)


def speeds(parallel: ParallelConfig, effort: Effort = EFFORT, slow_pair: tuple[int, int] | None = None) -> list[Speed]:
    def make(exchange: Any) -> Any:
        def planted(tensor: Any, other: int, group: Any) -> None:
            exchange(tensor, other, group)
            if slow_pair == tuple(sorted((dist.get_rank(), other))):
                time.sleep(0.5)

        return planted

    with model_parallel(parallel, pick_device(), seed=0) as groups:
        mend = replace_name(links, "_exchange", make)
        try:
            return measure(groups, effort)
        finally:
            mend()


def test_every_group_and_neighbour_of_every_axis_is_measured(worlds: Worlds) -> None:
    found = [each for rank in worlds.run(4, speeds, parallel=ParallelConfig(tensor=2, pipeline=2)) for each in rank]
    assert {(each.axis, each.ranks) for each in found if each.is_pair} == {
        ("tensor", (0, 1)),
        ("tensor", (2, 3)),
        ("pipeline", (0, 2)),
        ("pipeline", (1, 3)),
    }
    groups = [(each.axis, each.ranks) for each in found if not each.is_pair]
    assert sorted(groups) == [("tensor", (0, 1))] * 2 + [("tensor", (2, 3))] * 2, "each rank tells what it saw"
    assert all(each.gigabytes > 0 for each in found)


def test_a_brief_look_leaves_pairs_alone_that_never_talk(worlds: Worlds) -> None:
    brief = Effort(nbytes=1 << 16, repeats=1, pairs=False)
    found = worlds.run(4, speeds, parallel=ParallelConfig(pipeline=2), effort=brief)
    assert {(each.axis, each.is_pair) for rank in found for each in rank} == {("data", False), ("pipeline", True)}


def test_rings_are_closed_and_a_slow_pair_slows_no_other(worlds: Worlds) -> None:
    found = [each for rank in worlds.run(4, speeds, parallel=ParallelConfig(), slow_pair=(2, 3)) for each in rank]
    pairs = [each for each in found if each.is_pair]
    assert {each.ranks for each in pairs} == {(0, 1), (1, 2), (2, 3), (3, 0)}
    assert [each.ranks for each in slow(pairs, factor=10.0)] == [(2, 3)]
    odd = worlds.run(3, speeds, parallel=ParallelConfig())
    assert {each.ranks for rank in odd for each in rank if each.is_pair} == {(0, 1), (1, 2), (2, 0)}


def test_of_one_or_two_links_nothing_can_be_said() -> None:
    few = [Speed(axis="data", ranks=(0, 1), is_pair=True, gigabytes=speed) for speed in (9.0, 0.1)]
    assert slow(few, factor=3.0) == []
    other = Speed(axis="tensor", ranks=(0, 1), is_pair=True, gigabytes=90.0)
    assert slow([*few, other], factor=3.0) == [], "axes are compared with themselves"
    assert slow([*few, *few[:1]], factor=3.0) == [few[1]]
