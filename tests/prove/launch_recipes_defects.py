"""Defects of recipes and of what is said of them, planted."""

from dataclasses import replace
from typing import Any

from parallel.config import RecomputeConfig
from tests.prove.planting import Mend, replace_name


def nothing_computed_again() -> Mend:
    """Recipes without their recomputation."""
    from launch import recipe_table

    def make(compose: Any) -> Any:
        def planted(name: str) -> Any:
            run = compose(name)
            return replace(run, parallel=replace(run.parallel, recompute=RecomputeConfig()))

        return planted

    return replace_name(recipe_table, "compose", make)


def another_machine() -> Mend:
    """The table made for GPUs that are slower."""
    from launch import recipe_table

    return replace_name(recipe_table, "MACHINE", lambda machine: replace(machine, efficiency=0.5))


def another_rate() -> Mend:
    """The recipes for 512 GPUs learn faster."""
    from tests.prove import launch_recipes

    def make(compose: Any) -> Any:
        def planted(name: str) -> Any:
            run = compose(name)
            return replace(run, stage=replace(run.stage, warmup=0.5)) if name.endswith("_512") else run

        return planted

    return replace_name(launch_recipes, "compose", make)


def fewest_is_double() -> Mend:
    """The refusal names more GPUs than are needed."""
    from launch.planning.search import Search

    def make(fewest: Any) -> Any:
        return lambda *given: 2 * fewest(*given)

    return replace_name(Search, "fewest", make)


def refused_with_zero() -> Mend:
    """A plan that does not fit ends as one that does."""
    from launch.planning import plan

    def make(stage: Any) -> Any:
        def planted(*given: Any) -> Any:
            lines, data, _ = stage(*given)
            return lines, data, True

        return planted

    return replace_name(plan, "_stage", make)


PLANTS = {
    "nothing_computed_again": (nothing_computed_again, ("recipes/fit",)),
    "another_machine": (another_machine, ("recipes/page",)),
    "another_rate": (another_rate, ("recipes/learnt",)),
    "fewest_is_double": (fewest_is_double, ("recipes/refused qwen2vl_72b_stage3",)),
    "refused_with_zero": (refused_with_zero, ("recipes/refused qwen2vl_72b_stage3",)),
}
