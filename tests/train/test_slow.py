"""A run in which one rank is slow names it."""

from pathlib import Path

from tests.harness.diagnosed import slow_run
from tests.harness.runs import make_data
from tests.prove.context import Worlds


def test_a_slow_rank_is_named(tmp_path: Path, worlds: Worlds) -> None:
    found = slow_run(worlds.nursery, tmp_path / "run", make_data(tmp_path / "data"))
    assert ([1], "forward") in found, found  # a busy host may slow something else for a moment as well
