"""`make prove-launch`: launch under SLURM, preflight."""

from tests.prove import launch_preflight, launch_slurm
from tests.prove.case import Case
from tests.prove.driver import main

TOPICS = (launch_preflight, launch_slurm)


def all_cases() -> dict[str, Case]:
    """Every case by its key."""
    return {key: case for topic in TOPICS for key, case in topic.cases().items()}


if __name__ == "__main__":
    main("launch", all_cases)
