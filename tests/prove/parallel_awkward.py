"""Batches out of the ordinary (item 2)."""

from tests.prove.case import Case


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {}
