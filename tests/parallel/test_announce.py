"""What a step sends: counts and integers by two broadcasts, pixels to who needs them, and no shape ever."""

import pytest

from parallel.config import ParallelConfig
from tests.harness.grid import GRID, grid_steps
from tests.harness.layouts import MODEL
from tests.harness.messages import EXAMPLES, counts_of, example_counts, example_rows, message_faults
from tests.harness.rows import random_step
from tests.harness.watch import watch_step
from tests.prove.context import LAYOUTS, Worlds


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_step_sends_what_the_example_says_and_no_more(name: str, worlds: Worlds) -> None:
    example = EXAMPLES[name]
    watched = worlds.run(example.processes, watch_step, parallel=example.parallel, stage="stage2", rows=example_rows())
    ranks_a_stage = example.processes // example.parallel.pipeline
    for rank, seen in enumerate(watched):
        due = example_counts(example.by_stage[rank // ranks_a_stage])
        assert counts_of(seen.messages) == due, f"rank {rank}"


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("layout", ["TP2xPP2+SP", "DP2xPP2"])
def test_messages_of_uneven_rows(layout: str, stage: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    rows = random_step(100, 4, MODEL.language.vocab_size)
    watched = worlds.run(size, watch_step, parallel=parallel, stage=stage, rows=rows)
    found = message_faults(parallel, rows, watched, MODEL.language.hidden_size)
    assert not any(found.values()), found
    multiple = parallel.tensor if parallel.sequence_parallel else 1
    for rank in watched:
        assert len(rank.lengths) == rank.microbatches
        for seen in rank.lengths:
            assert seen.row == -(-seen.samples // multiple) * multiple
            assert seen.hidden * multiple == seen.row


def test_interleaving_over_four_pipeline_stages_sends_hidden_states_alone(worlds: Worlds) -> None:
    parallel = ParallelConfig(pipeline=4, chunks=2)
    (rows, *_) = grid_steps(4)
    watched = worlds.run(4, watch_step, parallel=parallel, stage="stage2", rows=rows, model=GRID)
    found = message_faults(parallel, rows, watched, GRID.language.hidden_size)
    assert not any(found.values()), found
