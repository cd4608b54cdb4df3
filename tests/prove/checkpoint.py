"""`make prove-checkpoint`: faults in saves, kills, damage, changes of layout, the chain of stages."""

from tests.prove import (
    checkpoint_faults,
    checkpoint_layouts,
    checkpoint_plan,
    checkpoint_saves,
    checkpoint_signals,
    checkpoint_storage,
    checkpoint_tools,
)
from tests.prove.case import Case
from tests.prove.driver import main

TOPICS = (
    checkpoint_saves,
    checkpoint_layouts,
    checkpoint_plan,
    checkpoint_storage,
    checkpoint_signals,
    checkpoint_tools,
    checkpoint_faults,
)


def all_cases() -> dict[str, Case]:
    """Every case by its key."""
    return {key: case for topic in TOPICS for key, case in topic.cases().items()}


if __name__ == "__main__":
    main("checkpoint", all_cases)
