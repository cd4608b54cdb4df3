"""Fragments of boxes, by properties."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

from train.boxes import BoxTensor, Chunk, fragment_chunks, split_range

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(SHAPES)
    bounds = st.integers(0, math.prod(shape))
    start, stop = sorted((draw(bounds), draw(bounds)))
    return shape, start, stop


@given(ranges())
def test_sub_boxes_are_the_range_in_order(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = case
    whole = torch.arange(math.prod(shape)).view(shape)
    boxes = split_range(shape, start, stop)
    found = []
    for offset, size in boxes:
        assert len(offset) == len(size) == len(shape) and all(length > 0 for length in size)
        found += (
            whole[tuple(slice(at, at + length) for at, length in zip(offset, size, strict=True))].flatten().tolist()
        )
    assert found == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_whole_rows_stay_one_box() -> None:
    assert split_range((4, 5, 6), 0, 120) == [((0, 0, 0), (4, 5, 6))]
    assert split_range((4, 5, 6), 30, 90) == [((1, 0, 0), (2, 5, 6))]
    assert split_range((4, 5), 3, 15) == [((0, 3), (1, 2)), ((1, 0), (2, 5))]


@given(st.data())
def test_fragments_of_any_partition_fill_the_box_and_leave_padding_out(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple))
    padding = data.draw(st.integers(0, 7))
    offset = tuple(data.draw(st.integers(0, 3)) for _ in shape)
    count = math.prod(shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, count + padding), max_size=4)))
    whole = torch.full([at + size + 1 for at, size in zip(offset, shape, strict=True)], -1)
    local = torch.arange(count + padding)
    for start, stop in zip([0, *cuts], [*cuts, count + padding], strict=True):
        for chunk in fragment_chunks(offset, shape, start, local[start:stop]):
            window = tuple(slice(at, at + size) for at, size in zip(chunk.offset, chunk.data.shape, strict=True))
            assert (whole[window] == -1).all(), "two fragments claim one element"
            whole[window] = chunk.data
    window = tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))
    assert torch.equal(whole[window].flatten(), local[:count])
    whole[window] = -1
    assert (whole == -1).all(), "written outside of the box"


def test_chunks_share_the_fragments_memory() -> None:
    data = torch.zeros(7)
    for chunk in fragment_chunks((0, 0), (3, 4), 2, data):
        chunk.data.fill_(1.0)
    assert (data == 1.0).all()


def test_dcp_writes_and_reads_any_boxes(tmp_path: Path) -> None:
    """Cut one way, saved, read back cut another way; and a hole in what is asked for stays untouched."""
    warnings.simplefilter("ignore", UserWarning)
    values = torch.randn(4, 5, 3)
    chunks = [
        Chunk(offset=offset, data=values[tuple(slice(at, at + n) for at, n in zip(offset, size, strict=True))].clone())
        for cut in ((0, 17), (17, 60))
        for offset, size in split_range((4, 5, 3), *cut)
    ]
    save = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.save({"a": BoxTensor((4, 5, 3), chunks, values.dtype)}, checkpoint_id=tmp_path, planner=save, no_dist=True)
    into = torch.full((60,), 9.0)
    wanted = fragment_chunks((0, 0, 0), (4, 5, 3), 4, into[4:49])
    load = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.load({"a": BoxTensor((4, 5, 3), wanted, into.dtype)}, checkpoint_id=tmp_path, planner=load, no_dist=True)
    assert torch.equal(into[4:49], values.flatten()[4:49])
    assert (into[:4] == 9.0).all() and (into[49:] == 9.0).all()


def test_a_box_tensor_does_not_compute() -> None:
    with pytest.raises(NotImplementedError):
        BoxTensor((2, 2), [], torch.float32) + 1
