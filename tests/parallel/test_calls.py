"""What a rank can say of its last calls into process groups."""

import time

import torch
import torch.distributed as dist

from parallel.calls import last_calls, line_of
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.prove.context import Worlds


def calls_of_a_rank_that_lags() -> tuple[str, list[int]]:
    """Rank 0 comes late to a broadcast that rank 1 waits in: what each says meanwhile, and how many lines it had after
    6 calls into a group and after 26."""
    with model_parallel(ParallelConfig(pipeline=2), pick_device(), seed=0) as groups:
        lengths = []
        for count in (6, 20):
            for _ in range(count):
                dist.all_reduce(torch.ones(3), group=groups.replica)
            lengths.append(len(last_calls().splitlines()))
        dist.barrier()
        work = dist.broadcast(torch.ones(5), src=0, async_op=True) if groups.rank == 1 else None
        told, deadline = last_calls(), time.monotonic() + 60
        # torch notes the end of a call in a thread of its own.
        while groups.rank == 0 and "not ended" in told.splitlines()[0] and time.monotonic() < deadline:
            time.sleep(0.01)
            told = last_calls()
        dist.barrier(group=groups.replica)  # rank 0 has looked before it comes
        if work is None:
            work = dist.broadcast(torch.ones(5), src=0, async_op=True)
        work.wait()
        return told, lengths


def test_the_last_calls_of_each_group_are_told(worlds: Worlds) -> None:
    found = worlds.run(2, calls_of_a_rank_that_lags)
    late, waiting = (told.splitlines() for told, _ in found)
    assert waiting[0].startswith("gloo:broadcast ") and " of default_pg, (5,) Float, " in waiting[0]
    assert waiting[0].endswith("not ended")
    assert late[0].startswith("gloo:barrier ") and late[0].endswith(", ended")
    assert sum(" of MODEL_PARALLEL_GROUP, (3,) Float" in line for line in late) >= 3
    assert all(few == many for _, (few, many) in found), "of a long past only the newest calls are told"


def test_a_message_between_two_ranks_has_its_own_number() -> None:
    entry = {
        "is_p2p": True,
        "p2p_seq_id": 7,
        "collective_seq_id": 2,
        "input_sizes": [[4, 8]],
        "output_sizes": [],
        "input_dtypes": ["BFloat16"],
        "output_dtypes": [],
        "retired": False,
        "state": "started",
        "process_group": ["3", ""],
        "profiling_name": "nccl:send 0->1",
        "time_created_ns": (time.time() - 2.0) * 1e9,
    }
    assert line_of(entry, time.time()).startswith("nccl:send 0->1 7 of 3, (4, 8) BFloat16, begun 2.0 s ago, not ended")
