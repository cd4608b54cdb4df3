"""The last finished step of a run, saved by a thread while main threads may be stuck in the next one."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from parallel.stop import Gathered
from train.checkpoint.boxes import Chunk
from train.checkpoint.host import Aside
from train.checkpoint.run import RunCheckpoints
from train.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A run between two steps. Weights and optimizer state are where they always are."""

    step: int
    told: Callable[[], dict[str, Any]]
    """Makes what goes into state.json; only a save that comes of it has to pay for that."""
    random: Sequence[Chunk]
    """States of this rank's generators."""
    ready: torch.cuda.Event | None
    """When the device has finished the step, too."""


def finished(step: int, told: Callable[[], dict[str, Any]], random: Sequence[Chunk], device: torch.device) -> Finished:
    """The run as it is now; no wait for the device."""
    ready = None
    if device.type == "cuda":
        ready = torch.cuda.Event()
        ready.record()
    return Finished(step=step, told=told, random=random, ready=ready)


def save_finished(
    state: Finished,
    gathered: Gathered,
    checkpoints: RunCheckpoints,
    recipe: str,
    records: Sequence[dict[str, Any]],
    device: torch.device,
) -> str:
    """Commit `state` unless it is committed already; what became of it. Every rank calls it, in a thread.

    A save that is under way is waited for first. Raises CheckpointError if the state could not be saved.
    """
    with suppress(CheckpointError):  # it has been told, and this save takes its place
        checkpoints.finish()
    # Ranks may be a step apart where steps had nothing to learn, which leaves weights as they are: rank 0's counts.
    step = gathered(state.step)[0]
    lost = f"the step after {step} was given up"
    if checkpoints.has(step):
        return f"{lost}; step {step} had been saved"

    def summed(values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*gathered(list(values)), strict=True)]

    aside = Aside(summed=summed, ready=state.ready, device=device)
    checkpoints.save(step, state.told(), recipe, records, state.random, aside)
    outcome = checkpoints.finish()
    assert outcome is not None
    return f"{lost}; step {step} is saved in {outcome.path.name}"
