"""Who is named for holding the others up, from what each rank's own work has taken."""

from dataclasses import replace

from parallel.grid import Grid
from parallel.pace import WORK, Comparison, Pace, Spent, stragglers

GRID = Grid(world_size=8, tp_size=2, pp_size=2)  # ranks by (dp, tp, pp)
BEFORE = {rank: Pace(steps=4, clock=100.0, seconds=(1.0,) * len(WORK), host=f"node{rank // 4}") for rank in range(8)}


def later(**slow: dict[int, float]) -> dict[int, Pace]:
    """Ten steps of a second each later: 0.2 s a step of each work, and what is said beside."""
    found = {}
    for rank, pace in BEFORE.items():
        spent = [1.0 + 10 * slow.get(work, {}).get(rank, 0.2) for work in WORK]
        found[rank] = replace(pace, steps=14, clock=110.0, seconds=tuple(spent))
    return found


def named(**slow: dict[int, float]) -> list[tuple[str, tuple[int, ...]]]:
    return [(one.work, one.ranks) for one in stragglers(GRID, BEFORE, later(**slow))]


def rank(dp: int, tp: int, pp: int) -> int:
    return GRID.rank(dp=dp, tp=tp, pp=pp)


def test_the_slow_rank_is_named_with_its_work() -> None:
    for work in ("forward", "backward", "update", "save"):
        assert named(**{work: {5: 0.5}}) == [(work, (5,))]
    reader = rank(1, 0, 0)
    assert named(data={reader: 0.5}) == [("data", (reader,))]
    assert named(data={rank(1, 1, 0): 0.5}) == [], "a rank that does not read has nothing to wait for"
    assert named(forward={5: 0.25}) == [], "a twentieth of a step is nothing to speak of"


def test_a_group_that_waits_for_each_other_is_named_together() -> None:
    tensor = (rank(1, 0, 1), rank(1, 1, 1))
    assert named(backward=dict.fromkeys(tensor, 0.6)) == [("backward", tuple(sorted(tensor)))]
    over_data = (rank(0, 1, 0), rank(1, 1, 0))
    assert named(reduce=dict.fromkeys(over_data, 0.6)) == [("reduce", tuple(sorted(over_data)))]
    assert named(reduce=dict.fromkeys(range(8), 0.6)) == [], "where all take as long, nobody is to blame"


def test_pipeline_stages_are_not_compared_with_each_other() -> None:
    assert named(forward={rank(dp, tp, 1): 0.6 for dp in range(2) for tp in range(2)}) == []


def test_the_worst_comes_first_and_is_told_with_its_host() -> None:
    found = stragglers(GRID, BEFORE, later(forward={5: 0.4}, save={2: 0.9}))
    assert [one.work for one in found] == ["save", "forward"]
    assert str(found[1]) == (
        "rank 5 held the others up in forward: 0.40 s a step, where others take 0.20 s (mean of 10 steps), on node1"
    )


def test_each_look_is_at_what_came_since_the_last() -> None:
    comparison = Comparison(GRID)
    assert comparison.slow(BEFORE) == []
    assert comparison.slow({r: replace(pace, steps=5) for r, pace in BEFORE.items()}) == [], "one step says too little"
    slow = later(forward={5: 0.5})
    assert [one.ranks for one in comparison.slow(slow)] == [(5,)]
    on = {r: replace(p, steps=24, clock=120.0, seconds=tuple(s + 2.0 for s in p.seconds)) for r, p in slow.items()}
    assert comparison.slow(on) == []
    assert comparison.slow({}) == []


def test_work_counts_when_its_step_is_over() -> None:
    spent = Spent()
    spent.add("forward", 0.5)
    assert spent.pace.steps == 0 and spent.pace.seconds == (0.0,) * len(WORK)
    spent.end_step()
    assert spent.pace.steps == 1 and spent.pace.seconds[WORK.index("forward")] == 0.5
