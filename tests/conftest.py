"""Worlds of processes for the whole test run: a start costs seconds a process."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.prove.context import Worlds

# A shared host may stand still for half a second, and the first call of some code compiles it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    made = Worlds()
    yield made
    made.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests are skipped, by name, on a host without CUDA."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
