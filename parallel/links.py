"""How fast ranks reach each other, axis by axis, over the process groups that training will use."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from parallel.groups import Groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of one group, or of one pair of ranks."""

    axis: str
    """tensor, data or pipeline."""
    ranks: tuple[int, ...]
    """Global."""
    is_pair: bool
    gigabytes: float
    """A second. All-reduces: what each rank's link carries, 2 (n - 1) / n of the tensor. Pairs: in each direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is sent to find out."""

    nbytes: int
    repeats: int
    pairs: bool
    """Neighbours one by one on every axis, which names a slow node; without it on the pipeline axis alone. NCCL keeps
    some megabytes for each pair of ranks that has ever talked, which training need not do."""


def measure(groups: Groups, effort: Effort) -> list[Speed]:
    """Speeds that this rank saw. To be called by all ranks together."""
    found: list[Speed] = []
    for axis, group in (("tensor", groups.tp), ("data", groups.dp), ("pipeline", groups.pp)):
        ranks = tuple(dist.get_process_group_ranks(group))
        if len(ranks) == 1:
            continue
        tensor = torch.zeros(effort.nbytes // 4, dtype=torch.float32, device=groups.device)
        dist.all_reduce(tensor, group=group)  # makes NCCL's communicator, which takes seconds
        if axis != "pipeline":
            share = 2 * (len(ranks) - 1) / len(ranks) * effort.nbytes
            seconds = _timed(partial(dist.all_reduce, tensor, group=group), effort.repeats, groups.device)
            found.append(Speed(axis=axis, ranks=ranks, is_pair=False, gigabytes=share / seconds / 1e9))
        if axis == "pipeline" or effort.pairs:
            found += _pairs(axis, group, ranks, tensor, effort, groups)
    return found


def slow(speeds: Sequence[Speed], factor: float) -> list[Speed]:
    """Those with less than a `factor`-th of the median of their kind; of one or two nothing can be said."""
    found = []
    for axis, is_pair in sorted({(speed.axis, speed.is_pair) for speed in speeds}):
        kind = [speed for speed in speeds if (speed.axis, speed.is_pair) == (axis, is_pair)]
        middle = statistics.median(speed.gigabytes for speed in kind)
        found += [speed for speed in kind if len(kind) > 2 and speed.gigabytes * factor < middle]
    return found


def _pairs(
    axis: str, group: dist.ProcessGroup, ranks: tuple[int, ...], tensor: torch.Tensor, effort: Effort, groups: Groups
) -> list[Speed]:
    """Every rank with the next, in two or three rounds: a pair that is slow holds up no other."""
    me, size = ranks.index(groups.rank), len(ranks)
    couples = [(at, at + 1) for at in range(size - 1)]
    if size > 2 and axis != "pipeline":
        couples.append((size - 1, 0))
    found = []
    for number in range(3):
        dist.barrier(group=group)  # so that no pair waits for one of the round before
        mine = [pair for at, pair in enumerate(couples) if me in pair and _round(at, len(couples), size) == number]
        for pair in mine:
            other = ranks[pair[0] if pair[1] == me else pair[1]]
            seconds = _timed(partial(_exchange, tensor, other, group), effort.repeats, groups.device)
            if pair[0] == me:
                speed = effort.nbytes / seconds / 1e9
                found.append(Speed(axis=axis, ranks=(groups.rank, other), is_pair=True, gigabytes=speed))
    return found


def _round(at: int, count: int, size: int) -> int:
    """The one that closes a ring of odd size has both of its ranks in another pair of either round."""
    return 2 if at == size - 1 and count == size and size % 2 else at % 2


def _exchange(tensor: torch.Tensor, other: int, group: dist.ProcessGroup) -> None:
    received = torch.empty_like(tensor)
    both = [
        dist.P2POp(dist.isend, tensor, other, group=group),
        dist.P2POp(dist.irecv, received, other, group=group),
    ]
    for work in dist.batch_isend_irecv(both):
        work.wait()


def _timed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median seconds, after one call that does not count."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
