"""Our FLOPs against what torch counts while a real step runs, part by part and stage by stage."""

import pytest

from parallel.config import RecomputeConfig
from tests.harness.flops import STEPS, counted_and_ours
from tests.harness.layouts import STAGES
from tests.prove.context import Worlds


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("stage", STAGES)
def test_flops_of_a_step(stage: str, step: str, worlds: Worlds) -> None:
    ((counted, ours),) = worlds.run(1, counted_and_ours, stage=stage, forward_only=False, step=step)
    assert ours == counted


def test_flops_of_a_forward_pass(worlds: Worlds) -> None:
    ((counted, ours),) = worlds.run(1, counted_and_ours, stage="stage2", forward_only=True)
    assert ours == counted


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "recompute",
    [
        RecomputeConfig(vision="full", language="selective"),
        RecomputeConfig(vision="selective", language="full"),
    ],
    ids=str,
)
def test_flops_with_what_is_computed_again(stage: str, recompute: RecomputeConfig, worlds: Worlds) -> None:
    step = "a row of text among rows with pictures"
    arguments = {"stage": stage, "forward_only": False, "step": step}
    ((counted, ours),) = worlds.run(1, counted_and_ours, **arguments, recompute=recompute)
    ((without, _),) = worlds.run(1, counted_and_ours, **arguments)
    assert ours == counted > without
