"""bf16 beside fp32 (item 8)."""

from tests.prove.case import Case


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {}
