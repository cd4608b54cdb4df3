"""When each pipeline stage does what, in a step of 1F1B: megatron-core's order, with given seconds for each pass.

    rank 0   F0 F1 F2 .  .  B0 F3 B1 ...        warm-up of (stages - rank - 1) forward passes, then one forward and
    rank 1      F0 F1 .  B0 F2 B1 ...           one backward pass in turn, then the backward passes that are left
    rank 2         F0 B0 F1 B1 ...              (arXiv 2104.04473, section 2.2; interleaved: with chunks)

No torch, no process: a plan of 512 GPUs is one replica's pipeline, simulated in milliseconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A microbatch through one piece of the model."""

    microbatch: int
    chunk: int = 0
    backward: bool = False


def passes(rank: int, stages: int, chunks: int, microbatches: int) -> list[Pass]:
    """What a pipeline stage does in a step, in order.

    megatron-core 0.16.1, `pipeline_parallel/schedules.py`: `get_pp_rank_microbatches`, `get_schedule_table` with its
    default group size, the number of pipeline stages.
    """
    table = _table(stages, chunks, microbatches)
    if chunks == 1:
        warmup = stages - rank - 1
    else:
        warmup = 2 * (stages - rank - 1) + (chunks - 1) * stages
    warmup = min(warmup, len(table))
    forward = [Pass(microbatch=microbatch, chunk=chunk) for microbatch, chunk in table]
    backward = [Pass(microbatch=microbatch, chunk=chunks - 1 - chunk, backward=True) for microbatch, chunk in table]
    order = forward[:warmup]
    for ahead, back in zip(forward[warmup:], backward, strict=False):
        order += [ahead, back]
    return order + backward[len(table) - warmup :]


def _table(stages: int, chunks: int, microbatches: int) -> list[tuple[int, int]]:
    """(microbatch, chunk) of the forward passes: groups of microbatches go through one chunk, then through the next."""
    groups = [range(first, min(first + stages, microbatches)) for first in range(0, microbatches, stages)]
    if chunks == 1:
        return [(microbatch, 0) for microbatch in range(microbatches)]
    return [(microbatch, chunk) for group in groups for chunk in range(chunks) for microbatch in group]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A step's passes in time."""

    seconds: float
    """From the first pass to the end of the last."""
    busy: tuple[float, ...]
    """Seconds that each pipeline stage computes."""

    @property
    def bubble(self) -> float:
        """Share of all stages' time in which they wait."""
        return 1.0 - sum(self.busy) / (len(self.busy) * self.seconds)


def simulate(
    stages: int,
    chunks: int,
    microbatches: int,
    seconds_of: Callable[[int, Pass], float],
    message_seconds: Callable[[int], float] = lambda microbatch: 0.0,
) -> Timeline:
    """Let every stage do its passes as soon as what they need is there.

    Args:
        seconds_of: of a pass, by rank in the pipeline.
        message_seconds: a microbatch's hidden states, or their gradient, on the way from one stage to the next.
    """
    orders = [passes(rank, stages, chunks, microbatches) for rank in range(stages)]
    places, free, busy = [0] * stages, [0.0] * stages, [0.0] * stages
    ended: dict[tuple[int, Pass], float] = {}
    last = stages * chunks - 1
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        moved = False
        for rank, order in enumerate(orders):
            while places[rank] < len(order):
                step = order[places[rank]]
                piece = step.chunk * stages + rank
                before = piece + 1 if step.backward else piece - 1
                start = free[rank]
                if 0 <= before <= last:
                    owner = (
                        before % stages,
                        Pass(microbatch=step.microbatch, chunk=before // stages, backward=step.backward),
                    )
                    if owner not in ended:
                        break
                    start = max(start, ended[owner] + message_seconds(step.microbatch))
                took = seconds_of(rank, step)
                free[rank] = ended[rank, step] = start + took
                busy[rank] += took
                places[rank] += 1
                moved = True
        assert moved, "every pass waits for another"
    return Timeline(seconds=max(free), busy=tuple(busy))


def most_held(
    order: Sequence[Pass], bytes_of: Callable[[Pass], int], beside: Callable[[Pass], int] = lambda step: 0
) -> int:
    """Bytes held at most by a stage that does `order`: each forward pass leaves `bytes_of` it, which its backward pass
    frees when it is over; a pass itself takes `beside` it (less than 0 where it is over its worst before all is made).
    """
    held = most = 0
    for step in order:
        left = bytes_of(Pass(microbatch=step.microbatch, chunk=step.chunk))
        if step.backward:
            most = max(most, held + beside(step))
            held -= left
        else:
            held += left
            most = max(most, held, held + beside(step))
    assert held == 0, "a pass has no backward pass"
    return most
