"""One checkpoint, written and waited for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from train.checkpoint.entries import ALONE, Optimizer, Writer
from train.checkpoint.run import RunCheckpoints

if TYPE_CHECKING:
    from model.canonical import Box


def save_commit(
    run_dir: str | Path,
    step: int,
    parameters: Mapping[str, Tensor],
    boxes: "Mapping[str, Box]",
    optimizer: Optimizer | None,
    told: Mapping[str, Any],
    recipe: str,
    *,
    keep: int,
    writer: Writer = ALONE,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write one checkpoint and wait for its seal. Returns its folder. Arguments are those of `RunCheckpoints`.

    Raises:
        CheckpointError: on every rank, if one could not write. The folder stays, unsealed.
    """
    checkpoints = RunCheckpoints(
        run_dir,
        parameters,
        boxes,
        optimizer,
        writer=writer,
        frozen=(),
        keep=keep,
        commit_seconds=3600.0,
        group=group,
    )
    checkpoints.save(step, told, recipe)
    outcome = checkpoints.finish()
    assert outcome is not None
    return outcome.path
