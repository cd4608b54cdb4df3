"""Copies of one weight on tensor ranks (item 6)."""

from tests.prove.case import Case


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {}
