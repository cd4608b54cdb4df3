"""What a step tells beside its loss: norms of parts, losses of sources, the bubble; the same on any layout."""

import math

import pytest

from parallel.config import ParallelConfig
from tests.harness.told_steps import (
    SOURCES,
    counts_due,
    loss_error,
    losses_alone,
    norm_error,
    part_norms_due,
    told_step,
)
from tests.prove.context import LAYOUTS, Worlds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["DP2", "TP2+SP", "PP2", "DP2xTP2+SP"])
def test_norms_of_parts_are_those_of_the_whole_model(layout: str, precision: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    ranks = worlds.run(size, told_step, parallel=parallel, precision=precision)
    due = part_norms_due(ranks)
    assert due.keys() == {"vision", "merger", "language"}
    assert norm_error(ranks, due) < 1e-5
    assert math.hypot(*ranks[0].part_norms.values()) == pytest.approx(ranks[0].norm, rel=1e-5)
    if precision == "fp32":
        alone = worlds.run(1, told_step, parallel=ParallelConfig())
        assert norm_error(ranks, alone[0].part_norms) < 1e-5


def test_only_parts_that_learn_have_a_norm(worlds: Worlds) -> None:
    size, parallel = LAYOUTS["PP2"]  # in stage 1 its second pipeline stage learns nothing
    ranks = worlds.run(size, told_step, parallel=parallel, stage="stage1")
    assert norm_error(ranks, part_norms_due(ranks)) < 1e-5
    assert [set(rank.part_norms) for rank in ranks] == [{"vision", "merger"}] * 2


@pytest.mark.parametrize("layout", ["DP2", "TP2+SP", "PP2"])
def test_losses_of_sources_are_those_of_each_alone(layout: str, worlds: Worlds) -> None:
    due = worlds.run(1, losses_alone)[0]
    size, parallel = LAYOUTS[layout]
    ranks = worlds.run(size, told_step, parallel=parallel)
    assert loss_error(ranks, due) < 1e-5
    assert all(rank.counts == counts_due() for rank in ranks)
    assert all(math.isnan(rank.losses[SOURCES - 1]) and sum(rank.counts[-1]) == 0 for rank in ranks)


def test_of_one_microbatch_each_pipeline_stage_waits_while_the_other_computes(worlds: Worlds) -> None:
    size, parallel = LAYOUTS["PP2"]
    ranks = worlds.run(size, told_step, parallel=parallel, rows=1)
    assert 0.3 < ranks[0].bubble < 0.7  # one half, on any host: ranks take turns
    assert ranks[0].bubble == ranks[1].bubble
    assert worlds.run(1, told_step, parallel=ParallelConfig())[0].bubble == 0.0
