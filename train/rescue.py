"""The last finished step of a run, saved by a thread while main threads may be stuck in the next one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from parallel.stop import Gathered
from train.checkpoint.boxes import Chunk
from train.checkpoint.host import Aside
from train.checkpoint.run import RunCheckpoints


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A run between two steps. Weights and optimizer state are where they always are."""

    step: int
    told: Callable[[], dict[str, Any]]
    """Makes what goes into state.json; only a save that comes of it has to pay for that."""
    random: Sequence[Chunk]
    """States of this rank's generators."""
    records: Sequence[dict[str, Any]]
    """Samples of this rank that could not be used, up to this step."""
    ready: torch.cuda.Event | None
    """When the device has finished the step, too."""


def finished(
    step: int,
    told: Callable[[], dict[str, Any]],
    random: Sequence[Chunk],
    records: Sequence[dict[str, Any]],
    device: torch.device,
) -> Finished:
    """The run as it is now; no wait for the device."""
    ready = None
    if device.type == "cuda":
        ready = torch.cuda.Event()
        ready.record()
    return Finished(step=step, told=told, random=random, records=records, ready=ready)


def save_finished(
    state: Finished,
    gathered: Gathered,
    checkpoints: RunCheckpoints,
    recipe: str,
    device: torch.device,
) -> str:
    """Commit `state` unless it is committed already; what became of it. Every rank calls it, in a thread.

    A save that is under way is waited for first. Raises CheckpointError if the state could not be saved.
    """
    checkpoints.settle()  # if it failed, that has been told, and this save takes its place
    # Ranks may be a step apart where steps had nothing to learn, which leaves weights as they are: rank 0's counts.
    step = gathered(state.step)[0]
    lost = f"the step after {step} was given up"
    if checkpoints.newest == step:
        return f"{lost}; step {step} had been saved"

    def summed(values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*gathered(list(values)), strict=True)]

    aside = Aside(summed=summed, ready=state.ready, device=device)
    checkpoints.save(step, state.told(), recipe, state.records, state.random, aside, last=True)
    outcome = checkpoints.finish()
    assert outcome is not None
    return f"{lost}; step {step} is saved in {outcome.path.name}"
