"""A short sample of `make prove-checkpoint`: faults, kills and damage, a changed layout, what a commit holds."""

from collections.abc import Iterator

import pytest

from tests.prove import checkpoint_faults, checkpoint_layouts, checkpoint_saves
from tests.prove.context import Context, Worlds

LAYOUTS = ("layout/stage2/tied/PP2 to TP2+SP", "same/stage3/TP2+SP")
CASES = (
    checkpoint_faults.short_cases()
    | {key: case for key, case in checkpoint_layouts.cases().items() if key in LAYOUTS}
    | {key: case for key, case in checkpoint_saves.cases().items() if key != "stall"}  # timed alone
)


@pytest.fixture(scope="module")
def context(worlds: Worlds) -> Iterator[Context]:
    made = Context(worlds, plant=None)
    yield made
    made.close()


@pytest.mark.parametrize("key", CASES)
def test_every_row_is_ok(key: str, context: Context) -> None:
    cells = CASES[key].run(context)
    assert [cell.name for cell in cells] == list(CASES[key].names)
    assert not [cell for cell in cells if not cell.measured <= cell.limit]


def test_layouts_chosen_are_there() -> None:
    assert set(LAYOUTS) <= set(CASES)
