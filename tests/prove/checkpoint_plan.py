"""Changes of the plan on the way (item 6), by the properties of tests/data/test_segments.py with more examples; and a
damaged checkpoint that began one (item 1)."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.data import test_segments
from tests.harness import damaged_segment
from tests.prove.case import Case, Cell
from tests.prove.context import Context
from train import ready

RUNS = 150
PROPERTIES: dict[str, tuple[str, Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "epochs": (
        "a sample lost, or twice in an epoch",
        test_segments.test_an_epoch_has_every_sample_once_whatever_changes,
        (),
    ),
    "replay": (
        "a past step planned again otherwise than it was fed",
        test_segments.test_any_past_step_is_planned_again_as_it_was_fed,
        (st.data(),),
    ),
    "stops": (
        "a run that stops on the way fed otherwise",
        test_segments.test_a_run_that_is_stopped_again_and_again_feeds_the_same,
        (st.integers(0, 6),),
    ),
}
"""(what is counted, the test, what it draws beside a run)"""


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {f"plan/{key}": _property(key) for key in PROPERTIES} | {"plan/damaged": _damaged()}


def broken(key: str) -> int:
    """1 if an example breaks the property; hypothesis ends at the first."""
    _, check, beside = PROPERTIES[key]
    wanted = settings(
        max_examples=RUNS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    inner = check.hypothesis.inner_test  # type: ignore[attr-defined]
    try:
        wanted(given(test_segments.runs(), *beside)(inner))()
    except AssertionError:
        return 1
    return 0


def _property(key: str) -> Case:
    what, _, _ = PROPERTIES[key]
    name = f"mixture, sources, batch, budgets and window changed at random, several in a row: {what}"

    def run(context: Context) -> list[Cell]:
        found = context.run_here(broken, key=key)
        return [Cell(name=name, measured=found, limit=0, unit=f"in {RUNS} runs")]

    return Case(item=6, names=(name,), run=run)


def _damaged() -> Case:
    title = "the newest commit began a segment of the plan and is damaged, the one before is gone on from"
    names = (
        f"{title}: what the look before the start has against it",
        f"{title}: loss, norm and weights at the end, from those of a run that changed nothing",
    )

    def run(context: Context) -> list[Cell]:
        refused, far = damaged_segment.gone_on(
            context.worlds.nursery,
            context.scratch / "damaged segment",
            context.data,
            lambda run: context.run_here(ready.file_faults, run=run),
        )
        return [
            Cell(name=names[0], measured=len(refused), limit=0, unit="faults"),
            Cell(name=names[1], measured=far, limit=0, unit="relative"),
        ]

    return Case(item=1, names=names, run=run)
