"""What a step sends (item 3)."""

from tests.prove.case import Case


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {}
