"""A rank that raises, dies or stalls; loss that is no number (item 7)."""

from tests.prove.case import Case


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {}
