"""Work that all ranks do together: what fails on one rank fails on all, with every rank's reason, and none waits."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from train.errors import CheckpointError

T = TypeVar("T")
_POLL_SECONDS = 0.2
PATIENCE = 60.0
"""Seconds after its limit in which rank 0 can still say itself what became of something slow."""
_ENDED, _DONE = "ended", "done"


def words_of(error: BaseException) -> str:
    """An error in one line, for those who were not there."""
    return f"{type(error).__name__}: {error}"


def fault_of(action: Callable[[], object]) -> str | None:
    """The words of what an action raised; None if it raised nothing."""
    try:
        action()
    except Exception as error:
        return words_of(error)
    return None


def rank_in(group: dist.ProcessGroup | None) -> int:
    """This rank within a group (None: the world); 0 without torch.distributed."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def size_of(group: dist.ProcessGroup | None) -> int:
    """Ranks of a group (None: the world); 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def summed_over(values: Sequence[float], group: dist.ProcessGroup | None) -> list[float]:
    """Sum a few numbers over a group (None: the world), in fp64."""
    total = torch.tensor(values, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total, group=group)
    return total.tolist()


def gathered(what: str, action: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Run `action` on every rank and return all results, by rank.

    Raises:
        CheckpointError: on every rank, if `action` raised on any. A rank that is gone raises the group's own error.
    """
    result: T | None = None
    reason: str | None = None
    cause: Exception | None = None
    try:
        result = action()
    except Exception as error:
        cause, reason = error, words_of(error)
    answers: list[tuple[T | None, str | None]] = [(result, reason)] * size_of(group)
    if dist.is_initialized():
        dist.all_gather_object(answers, (result, reason), group=group)
    # Replicas fail alike more often than not: each reason once, with the ranks that gave it.
    reasons: dict[str, list[int]] = {}
    for rank, (_, text) in enumerate(answers):
        if text is not None:
            reasons.setdefault(text, []).append(rank)
    if reasons:
        shown = "; ".join(f"rank {', '.join(map(str, ranks))}: {text}" for text, ranks in reasons.items())
        raise CheckpointError(f"{what} failed on {shown}") from cause
    return [value for value, _ in answers]  # type: ignore[misc]


def on_first_rank(what: str, action: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """Run `action` on rank 0 of the group and give its result to every rank; errors as in `gathered`."""
    return gathered(what, action if rank_in(group) == 0 else lambda: None, group)[0]  # type: ignore[return-value]


def slowly_on_first_rank(what: str, action: Callable[[Callable[[], None]], object], seconds: float) -> None:
    """Run on rank 0 of the world what may take long; the others wait, in no collective.

    A collective has a time limit of its own, and a rank that is in one for long is taken for stalled. So how it ended
    is one key of the job's store: rank 0 writes it, or, where that one hangs in something, whoever has waited longest.
    What is written first counts, on every rank.

    Args:
        action: is given what it has to call now and then: that raises TimeoutError once `seconds` have passed.
        seconds: rank 0's count, on every rank.

    Raises:
        CheckpointError: on every rank, if `action` raised or took too long.
    """
    if not dist.is_initialized():
        action(lambda: None)
        return
    limit = seconds
    name, seconds = on_first_rank(f"naming {what}", lambda: (f"slowly/{secrets.token_hex(8)}", limit), None)
    store = dist.PrefixStore(name, distributed_c10d._get_default_store())
    end = time.monotonic() + seconds
    late = TimeoutError(f"rank 0 was not done with {what} in {seconds:g} s")
    cause: Exception | None = None

    def check() -> None:
        if time.monotonic() > end:
            raise late

    if dist.get_rank() == 0:
        try:
            action(check)
        except Exception as error:
            cause = error
        said = store.compare_set(_ENDED, "", _DONE if cause is None else words_of(cause)).decode()
    else:
        while not store.check([_ENDED]) and time.monotonic() < end + PATIENCE:
            time.sleep(_POLL_SECONDS)
        said = store.compare_set(_ENDED, "", f"{words_of(late)}, and does not answer").decode()
    if said != _DONE:
        raise CheckpointError(f"{what} failed on rank 0: {said}") from cause
