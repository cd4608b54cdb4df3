"""Rank arithmetic. That megatron-core counts the same way is asserted whenever groups are made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.config import ParallelConfig
from parallel.grid import Grid

SIZES = st.integers(1, 8)


@given(dp=SIZES, tp=SIZES, pp=SIZES)
def test_coordinates_and_ranks_are_inverse(dp: int, tp: int, pp: int) -> None:
    grid = Grid(world_size=dp * tp * pp, tp_size=tp, pp_size=pp)
    assert grid.dp_size == dp
    seen = [grid.coordinates(rank) for rank in range(grid.world_size)]
    assert len(set(seen)) == grid.world_size
    assert all(d < dp and t < tp and p < pp for d, t, p in seen)
    assert [grid.rank(dp=d, tp=t, pp=p) for d, t, p in seen] == list(range(grid.world_size))


def test_tensor_ranks_are_neighbours_and_pipeline_stages_far_apart() -> None:
    grid = Grid(world_size=16, tp_size=4, pp_size=2)
    assert [grid.coordinates(rank)[1] for rank in range(4)] == [0, 1, 2, 3]
    assert grid.rank(dp=0, tp=0, pp=1) - grid.rank(dp=0, tp=0, pp=0) == 8


def test_axes_that_do_not_divide_the_world_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"6 processes .* = 4 ranks a replica; start a multiple of 4"):
        ParallelConfig(tensor=2, pipeline=2).data_size(6)
    assert ParallelConfig(tensor=2, pipeline=2).data_size(8) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor": 0}, "parallel.tensor is 0"),
        ({"sequence_parallel": True}, "parallel.tensor is 1"),
        ({"chunks": 2}, "parallel.pipeline is 1"),
        ({"pipeline": 2, "chunks": 2, "split": (2, 2)}, "give 4 numbers"),
        ({"pipeline": 2, "split": (1, 2, 1)}, "lists 3 pieces"),
    ],
)
def test_impossible_layouts_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**keys)
