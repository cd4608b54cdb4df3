"""Fragments of boxes, by properties."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from train.checkpoint.boxes import Chunk, overlap, run_chunks, split_range
from train.checkpoint.tensors import FORMAT, TensorReader, read_header, write_boxes

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
        for chunk in run_chunks("a", (9,) * len(shape), offset, shape, start, local[start:stop]):
            window = tuple(slice(at, at + size) for at, size in zip(chunk.offset, chunk.data.shape, strict=True))
            assert (whole[window] == -1).all(), "two fragments claim one element"
            whole[window] = chunk.data
    window = tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))
    assert torch.equal(whole[window].flatten(), local[:count])
    whole[window] = -1
    assert (whole == -1).all(), "written outside of the box"


def test_chunks_share_the_fragments_memory() -> None:
    data = torch.zeros(7)
    for chunk in run_chunks("a", (3, 4), (0, 0), (3, 4), 2, data):
        chunk.data.fill_(1.0)
    assert (data == 1.0).all()


def cut(shape: tuple[int, ...], cuts: list[int], flat: torch.Tensor, name: str = "a") -> list[list[Chunk]]:
    """The runs between `cuts`, as chunks of a tensor of `shape`."""
    bounds = [0, *sorted(cuts), math.prod(shape)]
    whole = (0,) * len(shape)
    return [
        run_chunks(name, shape, whole, shape, start, flat[start:stop]) for start, stop in itertools.pairwise(bounds)
    ]


@given(st.data())
def test_what_was_cut_one_way_is_read_another(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("boxes")
    shape = data.draw(SHAPES)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    places = st.lists(st.integers(0, math.prod(shape)), max_size=3)
    values = torch.randn(math.prod(shape)).to(dtype)
    files = {}
    for number, chunks in enumerate(cut(shape, data.draw(places), values.clone())):
        files[f"{number}"] = folder / f"{number}"
        write_boxes(
            files[f"{number}"], [*chunks, Chunk(name=f"b{number}", whole=(1,), offset=(0,), data=torch.ones(1))]
        )
    reader = TensorReader(files)
    assert reader.shape("a") == shape and reader.dtype("a") == dtype
    assert torch.equal(reader.read("a").view(-1), values)
    found = torch.full_like(values, 9.0)
    pieces = cut(shape, data.draw(places), found)
    left_out = data.draw(st.integers(0, len(pieces) - 1))
    reader.read_into([chunk for number, piece in enumerate(pieces) if number != left_out for chunk in piece])
    for chunk in pieces[left_out]:
        assert (chunk.data == 9.0).all()
        chunk.data.copy_(values.view(shape)[tuple(map(slice, chunk.offset, end(chunk)))])
    assert torch.equal(found, values)


def end(chunk: Chunk) -> tuple[int, ...]:
    return tuple(start + size for start, size in zip(chunk.offset, chunk.data.shape, strict=True))


def test_a_file_of_boxes_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    values = torch.arange(12.0).view(3, 4)
    write_boxes(tmp_path / "f", run_chunks("x.weight", (3, 4), (0, 0), (3, 4), 2, values.view(-1)[2:].clone()))
    stored = load_file(tmp_path / "f")
    assert torch.equal(stored["x.weight@0,2"], values[:1, 2:]) and torch.equal(stored["x.weight@1,0"], values[1:])
    assert {box.whole for box in read_header(tmp_path / "f", "f")} == {(3, 4)}


def one(folder: Path, offset: tuple[int, ...], rows: int, whole: tuple[int, ...] = (4, 2)) -> Path:
    path = folder / f"{offset[0]}-{rows}-{whole[0]}"
    write_boxes(path, [Chunk(name="a", whole=whole, offset=offset, data=torch.zeros(rows, 2))])
    return path


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([((0, 0), 2, (4, 2)), ((3, 0), 1, (4, 2))], "hold 6 of 8"),
        ([((0, 0), 2, (4, 2)), ((1, 0), 2, (4, 2))], "overlap or leave a hole"),
        ([((0, 0), 2, (4, 2)), ((2, 0), 2, (5, 2))], "disagree"),
        ([((0, 0), 4, (4, 2)), ((4, 0), 1, (4, 2))], "ends beyond"),
    ],
)
def test_boxes_that_are_no_tensor_are_refused(boxes: list, why: str, tmp_path: Path) -> None:
    files = {str(number): one(tmp_path, *box) for number, box in enumerate(boxes)}
    with pytest.raises(ValueError, match=why):
        TensorReader(files)


def test_a_file_that_holds_no_boxes_is_refused(tmp_path: Path) -> None:
    good = {"format": FORMAT, "shapes": json.dumps({"a": [4]})}
    for number, (tensors, told, why) in enumerate(
        [
            ({"a@0": torch.zeros(4)}, None, "has format None"),
            ({"a@0": torch.zeros(4)}, good | {"format": "another"}, "has format 'another'"),
            ({"a@0": torch.zeros(4)}, {"format": FORMAT}, "shapes"),
            ({"b@0": torch.zeros(4)}, good, "'b'"),
            ({"a@x": torch.zeros(4)}, good, "invalid literal"),
            ({"a@0,0": torch.zeros(4)}, good, "1 dims"),
            ({"a@0": torch.zeros(4, dtype=torch.int16)}, good, "I16"),
        ]
    ):
        save_file(tensors, tmp_path / str(number), told)
        with pytest.raises(ValueError, match=why):
            read_header(tmp_path / str(number), "f")
    (tmp_path / "cut").write_bytes((tmp_path / "0").read_bytes()[:20])
    with pytest.raises(ValueError, match="holds no boxes"):
        read_header(tmp_path / "cut", "f")


@given(ranges(), st.data())
def test_an_overlap_is_what_both_hold(case: tuple[tuple[int, ...], int, int], data: st.DataObject) -> None:
    shape = case[0]
    boxes = []
    for _ in range(2):
        offset = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
        boxes.append((offset, tuple(data.draw(st.integers(1, s - o)) for s, o in zip(shape, offset, strict=True))))
    marked = torch.zeros(shape)
    for offset, size in boxes:
        marked[tuple(slice(o, o + n) for o, n in zip(offset, size, strict=True))] += 1
    shared = overlap(*boxes[0], *boxes[1])
    assert (shared is None) == (marked.max() < 2)
    if shared is not None:
        assert math.prod(shared[1]) == (marked == 2).sum()
        assert (marked[tuple(slice(o, o + n) for o, n in zip(*shared, strict=True))] == 2).all()
