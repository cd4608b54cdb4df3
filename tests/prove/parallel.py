"""`make prove-parallel`: layouts, awkward batches, messages, times, bytes, copies, faults, precision."""

from tests.prove import (
    parallel_awkward,
    parallel_faults,
    parallel_finite,
    parallel_grid,
    parallel_messages,
    parallel_precision,
    parallel_replicas,
    parallel_state,
    parallel_times,
)
from tests.prove.case import Case
from tests.prove.driver import main

TOPICS = (
    parallel_times,  # first, because its processes must have the cores to themselves
    parallel_grid,
    parallel_awkward,
    parallel_messages,
    parallel_state,
    parallel_replicas,
    parallel_faults,
    parallel_finite,
    parallel_precision,
)


def all_cases() -> dict[str, Case]:
    """Every case by its key."""
    return {key: case for topic in TOPICS for key, case in topic.cases().items()}


if __name__ == "__main__":
    main("parallel", all_cases)
