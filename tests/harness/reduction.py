"""The reduction of parted copies inside a real run: what is saved of it, and gone on from.

Everything is counted from what ranks hold and what lies in files, with none of parallel/replicas.py's sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.canonical import Box
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.world import model_parallel, pick_device
from tests.harness.commits import save_commit
from tests.harness.copies import (
    FACTOR,
    FIRST_NORM,
    LAST_NORM,
    MERGER,
    PATCHES,
    VISION_BIAS,
    bits_apart,
    gathered,
    held,
    start,
    train,
)
from tests.harness.layouts import Stage
from train.checkpoint.entries import writer_of
from train.checkpoint.load import find_commit, load_optimizer, load_weights, read_tensors

SAVED_AFTER = 2
MERGER_BIAS = "merger.fc2.bias"
PLANTED: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    (MERGER, "weight"): lambda tensor: tensor.mul_(FACTOR),
    (MERGER, "master"): lambda tensor: tensor.mul_(FACTOR),
    (LAST_NORM, "exp_avg"): lambda tensor: tensor.add_(1e-3),
    (FIRST_NORM, "master"): lambda tensor: tensor.mul_(1 + 1e-4),  # less than a bf16 weight would show
    (MERGER_BIAS, "exp_avg_sq"): lambda tensor: tensor.mul_(1.5),
    (PATCHES, "weight"): lambda tensor: tensor.mul_(FACTOR),
    (VISION_BIAS, "weight"): lambda tensor: tensor.mul_(FACTOR),
}
"""What the last tensor rank of every replica holds otherwise, by canonical name and kind."""


@dataclass(kw_only=True)
class Reduced:
    """Counts of elements on this rank; all but `planted` should be none."""

    planted: int = 0
    """That differed between tensor ranks before the reduction."""
    weights: int = 0
    """That still differ after it."""
    masters: int = 0
    moments: int = 0
    others: int = 0
    """Of tensors that had not parted, with other bits than before."""
    file: int = 0
    """Of weights, masters and moments that this rank holds, and the checkpoint has otherwise."""
    resumed: int = 0
    """Of the same after two more steps, with other bits in the run that was resumed than in the one that went on."""
    mean_error: float = 0.0
    """Largest distance of a reduced tensor from the mean in fp64, relative to its largest element."""


def reduce_and_go_on(parallel: ParallelConfig, stage: str, precision: str, folder: Path, recipe: str) -> Reduced:
    """On every rank: two steps, copies made to part, the reduction, a save into `folder`, and two steps more; then the
    same two steps from what was saved."""
    reduced = Reduced()
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, stage, precision, groups)
        train(made, SAVED_AFTER)
        plant(made)
        _reduce(made, reduced)
        path = save(made, folder / "stopped", SAVED_AFTER, recipe)
        reduced.file = _unlike_file(made, path)
        train(made, 2)
        straight = _everything(made)
        made.optimizer.close()
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = resume(parallel, stage, precision, groups, folder / "stopped")
        reduced.resumed = sum(map(bits_apart, straight, _everything(made)))
        save(made, folder / "resumed", SAVED_AFTER + 2, recipe)
        made.optimizer.close()
    return reduced


def go_on_from(parallel: ParallelConfig, stage: str, precision: str, source: Path, target: Path, recipe: str) -> None:
    """On every rank: two steps from a checkpoint at `source`, saved into `target`."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = resume(parallel, stage, precision, groups, source)
        save(made, target, SAVED_AFTER + 2, recipe)
        made.optimizer.close()


def move(parallel: ParallelConfig, stage: str, precision: str, source: Path, target: Path, recipe: str) -> None:
    """On every rank: a checkpoint loaded on this layout and written again."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, stage, precision, groups, SAVED_AFTER)
        load(made, source)
        save(made, target, SAVED_AFTER, recipe)
        made.optimizer.close()


def resume(parallel: ParallelConfig, stage: str, precision: str, groups: Groups, source: Path) -> Stage:
    """A new process's worth of objects that has taken two steps from a checkpoint."""
    made = start(parallel, stage, precision, groups, SAVED_AFTER)
    with torch.no_grad():
        for parameter in made.built.module.parameters():
            parameter.zero_()  # whatever is not loaded shows
    load(made, source)
    assert made.optimizer.steps_taken == SAVED_AFTER
    train(made, 2)
    return made


def plant(made: Stage) -> None:
    """Make the last tensor rank's copies part from the others'."""
    if made.groups.tp_rank == made.groups.tp_size - 1:
        with torch.no_grad():
            for name, kind, tensor in held(made):
                PLANTED.get((name, kind), lambda tensor: tensor)(tensor)


def save(made: Stage, folder: Path, step: int, recipe: str) -> Path:
    """A commit as the trainer makes it, of whatever is held now."""
    parameters, boxes = dict(made.built.module.named_parameters()), made.built.boxes
    writer = writer_of(made.groups)
    return save_commit(folder, step, parameters, boxes, made.optimizer, {}, recipe, writer=writer, keep=9)


def load(made: Stage, folder: Path) -> None:
    commit = find_commit(folder)
    load_weights(commit, dict(made.built.module.named_parameters()), made.built.boxes)
    load_optimizer(commit, made.built.boxes, made.optimizer)


def _reduce(made: Stage, reduced: Reduced) -> None:
    groups = made.groups
    before = [gathered(tensor, groups) for _, _, tensor in held(made)]
    reduced.planted = sum(bits_apart(copies[0], copies[-1]) for copies in before)
    made.optimizer.average_replicas()
    planted_names = {name for name, _ in PLANTED}
    parameters = made.built.module.named_parameters()
    trained = {made.built.boxes[name].name for name, p in parameters if name in made.built.boxes and p.requires_grad}
    for copies, (name, kind, tensor) in zip(before, held(made), strict=True):
        apart = bits_apart(tensor, gathered(tensor, groups)[0])
        field = {"weight": "weights", "master": "masters"}.get(kind, "moments")
        setattr(reduced, field, getattr(reduced, field) + apart)
        if name not in planted_names:
            reduced.others += bits_apart(tensor, copies[groups.tp_rank])
        elif kind != "weight" or name not in trained:  # a trained weight is its master's, whatever copies there were
            mean = torch.stack([copy.double() for copy in copies]).mean(dim=0).to(tensor.dtype).double()
            error = float((tensor.double() - mean).abs().max() / mean.abs().max().clamp_min(1e-30))
            reduced.mean_error = max(reduced.mean_error, error)


def _everything(made: Stage) -> list[Tensor]:
    parameters = [parameter.detach() for parameter in made.built.module.parameters()]
    shares = [tensor for share in made.optimizer.fragments() for tensor in share.tensors.values()]
    return [tensor.clone() for tensor in (*parameters, *shares)]


def _unlike_file(made: Stage, path: Path) -> int:
    reader, boxes = read_tensors(path), made.built.boxes
    apart = 0
    for name, parameter in made.built.module.named_parameters():
        if name in boxes:
            apart += bits_apart(boxes[name].view(parameter), _box_of(reader.read(boxes[name].name), boxes[name]))
    for share in made.optimizer.fragments():
        box = boxes[share.param_name]
        for kind, tensor in share.tensors.items():
            stored = _box_of(reader.read(f"optimizer.{kind}.{box.name}"), box).reshape(-1)
            stored = stored[share.start : share.start + share.numel]  # rows that pad the vocabulary are in no file
            apart += bits_apart(tensor[: len(stored)], stored)
    return apart


def _box_of(whole: Tensor, box: Box) -> Tensor:
    for dim, (at, size) in enumerate(zip(box.offset, box.shape, strict=True)):
        whole = whole.narrow(dim, at, size)
    return whole


def files_apart(one: Path, other: Path) -> int:
    """Tensors of two runs' newest checkpoints with other bits, or in one of them alone."""
    left, right = (read_tensors(find_commit(path).path) for path in (one, other))
    shared = set(left.names()) & set(right.names())
    apart = len(set(left.names()) ^ set(right.names()))
    for name in shared:
        same = left.shape(name) == right.shape(name) and left.dtype(name) == right.dtype(name)
        apart += not same or bits_apart(left.read(name), right.read(name)) > 0
    return apart
