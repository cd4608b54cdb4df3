"""Random states in a commit: drawn numbers go on where they were, or follow from seed and step."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from train.checkpoint.commits import Commit, FileEntry
from train.checkpoint.disk import Digest
from train.checkpoint.generators import set_states, state_file, states
from train.checkpoint.tensors import write_boxes


@dataclass(frozen=True)
class Place:
    """What is asked of Groups."""

    rank: int = 1
    world_size: int = 4
    dp_size: int = 2
    tp_size: int = 2
    pp_size: int = 1
    dp_rank: int = 0
    pp_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def draw() -> list[float]:
    return [random.random(), random.gauss(), float(np.random.rand()), float(np.random.randn()), torch.rand(()).item()]


def commit_of(folder: Path, place: Place) -> Commit:
    name = state_file(place.rank)
    path = folder / "checkpoints" / "step_00000007.00000000"
    path.mkdir(parents=True)
    digest: Digest = write_boxes(path / name, states(place))  # type: ignore[arg-type]
    assert digest.size < 17_000
    return Commit(path=path, step=7, state={}, files={name: FileEntry(digest=digest, folder=path.name)})


@pytest.fixture(autouse=True)
def generators_as_they_were() -> object:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def test_the_same_layout_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    draw()  # leaves one of each pair of normal numbers behind
    commit = commit_of(tmp_path, Place())
    expected = [draw() for _ in range(3)]
    assert set_states(commit, Place(), seed=5, step=7)  # type: ignore[arg-type]
    assert [draw() for _ in range(3)] == expected


def test_another_layout_follows_from_seed_step_and_place(tmp_path: Path) -> None:
    commit = commit_of(tmp_path, Place())
    drawn = {}
    cases = {
        "another": (commit, replace(Place(), world_size=8, dp_size=4), 5, 7),
        "again": (commit, replace(Place(), world_size=8, dp_size=4), 5, 7),
        "a rank that was not there": (commit, replace(Place(), world_size=8, dp_size=4, rank=5, dp_rank=2), 5, 7),
        "the other tensor rank": (commit, replace(Place(), world_size=8, dp_size=4, rank=0), 5, 7),
        "a later step": (commit, replace(Place(), world_size=8, dp_size=4), 5, 8),
        "another seed": (commit, replace(Place(), world_size=8, dp_size=4), 6, 7),
        "a new run": (None, Place(), 5, 0),
    }
    for name, (of, place, seed, step) in cases.items():
        assert not set_states(of, place, seed, step), name  # type: ignore[arg-type]
        drawn[name] = draw()
    assert drawn["another"] == drawn["again"] == drawn["the other tensor rank"]
    assert len({tuple(numbers) for numbers in drawn.values()}) == len(cases) - 2
