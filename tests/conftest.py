"""Worlds of processes for the whole test run: a start costs seconds a process."""

from collections.abc import Callable, Iterator

import pytest

from parallel.config import ParallelConfig
from tests.harness.compare import Record
from tests.harness.layouts import train_on_layout
from tests.prove.context import Worlds


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    made = Worlds()
    yield made
    made.close()


@pytest.fixture(scope="session")
def one_process(worlds: Worlds) -> Callable[[str], list[Record]]:
    """What one process records of a training stage, as a list of one rank."""
    known: dict[str, list[Record]] = {}

    def record(stage: str) -> list[Record]:
        if stage not in known:
            known[stage] = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage=stage)
        return known[stage]

    return record


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests are skipped, by name, on a host without CUDA."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
