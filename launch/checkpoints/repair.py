"""What is wrong inside of a checkpoint whose digests hold, and a new checkpoint in which weights are right again.

A trained weight is stored beside its fp32 master. The master is the truth: the optimizer goes on from it, and the first
step after a resume puts its rounded value in the weight's place. A weight that is anything else steers that one step,
and whatever is exported. It comes of copies on tensor ranks that had parted when a save did not average them, or of
tools that edit weights. That copies on other ranks differ cannot be seen in a checkpoint: it holds tensor rank 0's.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from launch.checkpoints.export import run_of
from model.hf_weights import canonical_shape, hf_pieces
from train.checkpoint.commits import FILES, RECIPE, Attempt, Commit, attempts, open_commit, problems
from train.checkpoint.entries import STATE_TENSORS, state_name
from train.checkpoint.load import read_tensors
from train.checkpoint.rewrite import rewrite_commit
from train.checkpoint.tensors import TensorReader
from train.errors import CheckpointError
from train.lock import check_lock

_BLOCK = 1 << 22
"""Elements that are compared at a time: what is computed beside a tensor stays small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something wrong with one tensor of a checkpoint."""

    tensor: str
    kind: str
    """unlike its master, not finite, negative, missing, unknown, other shape, other dtype, or unreadable."""
    said: str
    elements: int = 0
    """How many are wrong, where single ones are."""
    largest: float = 0.0
    """Difference to what it should be: to the rounded master; of a negative one, to zero."""
    curable: bool = False
    """Whether its master can take its place."""

    @property
    def line(self) -> str:
        return f"{self.tensor}: {self.said}"


def faults(commit: Commit) -> list[Fault]:
    """Everything wrong with the tensors of a checkpoint whose digests hold.

    Every tensor is read once, in one process, with no more than a weight and its master in memory.
    """
    try:
        wanted = _wanted(commit)
    except ValueError as error:
        return [Fault(tensor=RECIPE, kind="unreadable", said=str(error))]
    try:
        reader = read_tensors(commit.path)
    except (OSError, ValueError) as error:
        return [Fault(tensor=FILES, kind="unreadable", said=str(error))]
    found = [*_names(reader, wanted)]
    sound = set(wanted) - {fault.tensor for fault in found}
    masters = {name: state_name("master", name) for name in sound if state_name("master", name) in sound}
    for name in sorted(sound - set(masters.values())):
        try:
            found += _values(reader, name, masters.get(name))
        except CheckpointError as error:
            found.append(Fault(tensor=name, kind="unreadable", said=str(error)))
    return found


def repair(where: str | Path) -> tuple[Path | None, list[str]]:
    """Write a checkpoint anew with every trained weight as its fp32 master says, if one is not. The old one stays.

    Args:
        where: a run's folder, of which the newest finished checkpoint is looked at, or one checkpoint folder.

    Returns:
        The new checkpoint's folder, None if there is nothing to repair; and what was found or done, in lines.

    Raises:
        ValueError: there is none, or it has faults that no master can mend: they are named, with what to do instead; or
            the run trains, which would prune what the new one refers to.
    """
    attempt, before = _newest(where)
    wrong = problems(attempt.path)
    if wrong:
        raise ValueError(_refusal(attempt, before, wrong, "`triptych resume` passes over it, and goes on"))
    commit = open_commit(attempt.path)
    found = faults(commit)
    if not found:
        return None, [f"{attempt.path.name}  nothing to repair"]
    incurable = [fault.line for fault in found if not fault.curable]
    if incurable:
        raise ValueError(_refusal(attempt, before, incurable, "move it out of the run, and `triptych resume` goes on"))
    check_lock(attempt.path.parent.parent)
    reader, mended = read_tensors(attempt.path), {fault.tensor for fault in found}

    entry = {"from": attempt.path.name, "found": [fault.line for fault in found]}
    try:
        path = rewrite_commit(
            commit,
            {name: partial(_master_as_weight, reader, name) for name in mended},
            {"repaired": [*commit.state.get("repaired", []), entry]},
        )
    except CheckpointError as error:
        name = attempt.path.name
        raise ValueError(f"the repair of {name} was not finished and counts for nothing: {error}") from error
    done = f"{attempt.path.name}  {len(mended)} weight(s) made their fp32 masters again"
    return path, [done, *(f"  {fault.line}" for fault in found), f"wrote {path}"]


def _wanted(commit: Commit) -> dict[str, tuple[int, ...]]:
    """Shapes by stored name of what this checkpoint should hold: its model's tensors, and the state of trained ones."""
    run = run_of(commit)
    shapes = {name: canonical_shape(pieces) for name, pieces in hf_pieces(run.model).items()}
    if commit.state.get("steps_taken") is None:  # weights alone, as `triptych checkpoint import` writes them
        return shapes
    trained = [name for name in shapes if name.partition(".")[0] in run.stage.trainable]
    return shapes | {state_name(kind, name): shapes[name] for kind in STATE_TENSORS for name in trained}


def _names(reader: TensorReader, wanted: dict[str, tuple[int, ...]]) -> Iterator[Fault]:
    stored = set(reader.names())
    for name in sorted(stored | set(wanted)):
        if name not in stored:
            yield Fault(tensor=name, kind="missing", said="missing, although the recipe's model and stage have it")
        elif name not in wanted:
            yield Fault(tensor=name, kind="unknown", said="unknown to the recipe's model and stage")
        elif reader.shape(name) != wanted[name]:
            said = f"has shape {reader.shape(name)}, the recipe's model has {wanted[name]}"
            yield Fault(tensor=name, kind="other shape", said=said)
        elif name.startswith("optimizer.") and reader.dtype(name) != torch.float32:
            yield Fault(tensor=name, kind="other dtype", said=f"is {_word(reader.dtype(name))}, should be float32")


def _values(reader: TensorReader, name: str, master: str | None) -> Iterator[Fault]:
    """Of one tensor, and of its master if it is a weight that has one."""
    tensor = reader.read(name)
    if master is not None:
        yield from _against_master(name, tensor, master, reader.read(master))
        return
    if bad := _count(~block.isfinite() for (block,) in _blocks(tensor)):
        yield _not_finite(name, bad, tensor.numel(), curable=False)
    if name.startswith(state_name("exp_avg_sq", "")) and (bad := _count(block < 0 for (block,) in _blocks(tensor))):
        lowest = min(float(block.nan_to_num().min()) for (block,) in _blocks(tensor))
        said = f"{bad} of {tensor.numel()} second moments are negative, down to {lowest:.3g}"
        yield Fault(tensor=name, kind="negative", said=said, elements=bad, largest=-lowest)


def _against_master(name: str, weight: Tensor, master_name: str, master: Tensor) -> Iterator[Fault]:
    apart = lost = unsound = overflows = 0
    largest = 0.0
    for held, truth in _blocks(weight, master):
        rounded = truth.to(held.dtype)
        lost += _count([~held.isfinite()])
        unsound += _count([~truth.isfinite()])
        overflows += _count([~rounded.isfinite()])
        differs = (held != rounded) & held.isfinite() & truth.isfinite()
        if count := _count([differs]):
            apart += count
            largest = max(largest, float((held[differs].double() - rounded[differs].double()).abs().max()))
    if apart:
        said = (
            f"{apart} of {weight.numel()} elements are not their fp32 master in {_word(weight.dtype)}, "
            f"by up to {largest:.3g}"
        )
        curable = not overflows
        yield Fault(tensor=name, kind="unlike its master", said=said, elements=apart, largest=largest, curable=curable)
    if lost:
        yield _not_finite(name, lost, weight.numel(), curable=not overflows)
    if unsound:
        yield _not_finite(master_name, unsound, master.numel(), curable=False)


def _not_finite(name: str, count: int, of: int, *, curable: bool) -> Fault:
    said = f"{count} of {of} elements are not finite"
    return Fault(tensor=name, kind="not finite", said=said, elements=count, largest=math.inf, curable=curable)


def _master_as_weight(reader: TensorReader, name: str) -> Tensor:
    return reader.read(state_name("master", name)).to(reader.dtype(name))


def _newest(where: str | Path) -> tuple[Attempt, Attempt | None]:
    """The newest finished checkpoint at `where`, and the one before it in the same run."""
    found = next((attempt for attempt in attempts(where) if attempt.sealed), None)
    if found is None:
        raise ValueError(f"{where} has no finished checkpoint")
    if found.path.parent.name != "checkpoints":
        raise ValueError(f"{found.path} does not lie in the checkpoints folder of a run; move it to one")
    older = [attempt for attempt in attempts(found.path.parent.parent) if attempt.sealed]
    names = [attempt.path.name for attempt in older]
    return found, next(iter(older[names.index(found.path.name) + 1 :]), None)


def _refusal(attempt: Attempt, before: Attempt | None, reasons: Sequence[str], how: str) -> str:
    shown = "".join(f"\n  - {reason}" for reason in reasons[:8])
    more = f"\n  - and {len(reasons) - 8} more" if len(reasons) > 8 else ""
    cure = f"{how} from {before.path.name}" if before else "there is no finished checkpoint before it to go on from"
    return f"{attempt.path.name} cannot be repaired; {cure}:{shown}{more}"


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(_BLOCK) for tensor in tensors), strict=True)


def _count(masks: Iterable[Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
