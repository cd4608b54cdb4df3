"""Step times of two ways in one run (items 3, 4, 9)."""

from tests.prove.case import Case


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {}
