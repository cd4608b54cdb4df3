"""What a step sends: lengths by one broadcast, hidden states between pipeline stages, and no shape ever."""

import pytest

from tests.harness.watch import watch_step
from tests.prove.context import LAYOUTS, Worlds
from train.batches import Counts


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("layout", ["TP2xPP2+SP", "DP2xPP2"])
def test_messages_of_a_step(layout: str, stage: str, worlds: Worlds) -> None:
    size, parallel = LAYOUTS[layout]
    for rank in worlds.run(size, watch_step, parallel=parallel, stage=stage):
        integers = [m for m in rank.messages if m.kind == "broadcast_" and m.is_integer]
        assert integers[0].numel == rank.microbatches * len(Counts._fields)
        assert len(integers) == 2  # lengths, then all integers in a row
        between = [m for m in rank.messages if m.kind == "send" or m.kind.startswith("recv")]
        assert len(between) == 2 * rank.microbatches and not any(m.is_integer for m in between)
        multiple = parallel.tensor if parallel.sequence_parallel else 1
        assert len(rank.lengths) == rank.microbatches
        for seen in rank.lengths:
            assert seen.row == -(-seen.samples // multiple) * multiple
            assert seen.hidden * multiple == seen.row
