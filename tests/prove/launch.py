"""`make prove-launch`: SLURM jobs, preflight, plans against measurement, what a run tells, diagnosing, evaluating."""

from tests.prove import (
    launch_diagnose,
    launch_evaluate,
    launch_plan,
    launch_preflight,
    launch_recipes,
    launch_slurm,
    launch_watch,
)
from tests.prove.case import Case
from tests.prove.driver import main

TOPICS = (launch_slurm, launch_preflight, launch_plan, launch_recipes, launch_watch, launch_diagnose, launch_evaluate)


def all_cases() -> dict[str, Case]:
    """Every case by its key."""
    return {key: case for topic in TOPICS for key, case in topic.cases().items()}


if __name__ == "__main__":
    main("launch", all_cases)
