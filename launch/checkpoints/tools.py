"""`triptych checkpoint diff|prune|average`: checkpoints against each other."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.reports import Report, table
from train.checkpoint import commits, pruning
from train.checkpoint.commits import Attempt, Commit, attempts, open_commit
from train.checkpoint.entries import MODEL_PARTS, part_of, state_name
from train.checkpoint.load import find_commit, read_tensors
from train.checkpoint.retention import Policy
from train.checkpoint.rewrite import write_whole_commit
from train.checkpoint.tensors import TensorReader

_BLOCK = 1 << 24
"""Elements that are compared at a time."""


def compared(one: str | Path, other: str | Path) -> Report:
    """Differences of two checkpoints, tensor by tensor; the report is good if there are none.

    Args:
        one, other: runs, whose newest usable checkpoints are taken, or checkpoint folders.

    Raises ValueError if there is none.
    """
    left, right = (read_tensors(find_commit(where).path) for where in (one, other))
    both = set(left.names()) & set(right.names())
    rows: list[dict[str, Any]] = []
    for name in sorted({*left.names(), *right.names()}):
        if name not in both:
            rows.append({"tensor": name, "said": f"missing in {one if name in right.names() else other}"})
        elif left.shape(name) != right.shape(name):
            rows.append({"tensor": name, "said": f"shape {left.shape(name)}, {right.shape(name)}"})
        elif found := _difference(left.read(name), right.read(name)):
            rows.append({"tensor": name, **found})
    lines = table([["tensor", "elements that differ", "largest", "relative"], *map(_cells, rows)]) if rows else []
    return Report(lines=lines or ["every tensor is the same"], data=rows, good=not rows)


def _difference(one: Tensor, other: Tensor) -> dict[str, Any] | None:
    """Counts of elements with other values, the largest difference, and its norm over that of `one`."""
    count, largest, square, norm = 0, 0.0, 0.0, 0.0
    for left, right in zip(one.view(-1).split(_BLOCK), other.view(-1).split(_BLOCK), strict=True):
        wide, gap = left.double(), left.double() - right.double()
        both_nan = left.isnan() & right.isnan()
        count += int(((left != right) & ~both_nan).sum())
        gap = gap.nan_to_num(math.inf)[~both_nan]
        largest = max(largest, float(gap.abs().max()) if gap.numel() else 0.0)
        square, norm = square + float(gap.square().sum()), norm + float(wide.nan_to_num().square().sum())
    if not count and one.dtype == other.dtype:
        return None
    relative = math.sqrt(square / norm) if norm else math.inf
    finite = {"largest": largest, "relative": relative}
    return {"differ": count, "of": one.numel()} | {k: v if math.isfinite(v) else None for k, v in finite.items()}


def _cells(row: dict[str, Any]) -> list[str]:
    if "said" in row:
        return [row["tensor"], row["said"], "", ""]
    numbers = ["not finite" if row[key] is None else f"{row[key]:.3g}" for key in ("largest", "relative")]
    return [row["tensor"], f"{row['differ']} of {row['of']}", *numbers]


def pruned(
    run_dir: Path,
    *,
    last: int | None,
    every: int | None,
    best: tuple[str, int] | None,
    names: Sequence[str],
    dry_run: bool,
) -> Report:
    """Delete the finished checkpoints of a run that no policy keeps; what was, or would be, deleted and kept.

    Args:
        last: keep so many of the newest.
        every: keep those of steps that it divides.
        best: (value in state.json, how many): keep those with the lowest.
        names: keep these folders.
        dry_run: delete nothing.

    The newest one that can be gone on from always stays, for which it is read through, and so does what a kept one
    refers to. Damaged ones that are found on the way count for nothing and are left as they are. Unfinished folders
    whose writer has gone are deleted. The run may go on meanwhile, and delete as well. Raises ValueError for a policy
    that says nothing, or a name or value that no checkpoint has.
    """
    if last is None and every is None and best is None and not names:
        raise ValueError("nothing says what to keep; give --last N, --every STEPS, --best loss or --keep NAME")
    damaged: dict[str, str] = {}
    sealed = _usable(run_dir, damaged)
    if unknown := set(names) - {attempt.path.name for attempt in sealed}:
        raise ValueError(f"{run_dir} has no finished checkpoint {', '.join(sorted(unknown))}")
    key, count = best or ("", 0)
    policy = Policy(
        last=last or 1,
        every=every,
        names=frozenset(names),
        lowest=_values(sealed, key) if best is not None else {},
        best=count,
    )
    stay = policy.kept([(attempt.path.name, attempt.step) for attempt in sealed])
    kept = {attempt.path for attempt in sealed if attempt.path.name in stay}
    gone = [attempt.path for attempt in sealed if attempt.path not in kept]
    if not dry_run:
        pruning.delete(run_dir, gone)
        pruning.clear_abandoned(run_dir)
    word = "would go" if dry_run else "deleted"
    lines = [f"{attempt.path.name}  {'kept' if attempt.path in kept else word}" for attempt in sealed]
    lines += [f"{name}  left as it is, damaged: {why}" for name, why in damaged.items()]
    data = {"kept": sorted(path.name for path in kept), "deleted": [path.name for path in gone], "dry_run": dry_run}
    data["damaged"] = damaged
    return Report(lines=lines or [f"{run_dir} has no finished checkpoint"], data=data)


def _usable(run_dir: str | Path, damaged: dict[str, str]) -> list[Attempt]:
    """Sealed checkpoints, the newest of which is whole; `damaged` gets those that were passed over, and why.

    One that the run deletes while it is read is neither, so they are listed again after each that is wrong.
    """
    while True:
        found = [each for each in attempts(run_dir) if each.sealed and each.path.name not in damaged]
        if not found or not (wrong := commits.problems(found[0].path)):
            break
        if commits.is_sealed(found[0].path):
            damaged[found[0].path.name] = wrong[0]
    said = {attempt.path for attempt in pruning.readable(run_dir)}
    for attempt in found:
        if attempt.path not in said and (wrong := commits.problems(attempt.path)) and commits.is_sealed(attempt.path):
            damaged[attempt.path.name] = wrong[0]
    return [attempt for attempt in found if attempt.path in said]


def _values(sealed: Sequence[Attempt], key: str) -> dict[str, float]:
    """What each checkpoint that has it says of `key`, by its name."""
    values = {}
    for attempt in sealed:
        with suppress(FileNotFoundError):  # the run has deleted it meanwhile
            values[attempt.path.name] = open_commit(attempt.path).state.get(key)
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    if not numbers:
        raise ValueError(f"no checkpoint says its {key!r}; `triptych checkpoint show` has what they say")
    return numbers


def averaged(run_dir: Path, where: Sequence[str | Path]) -> Report:
    """Write a checkpoint of weights alone, the mean of those of several, as step 0 of a run that has none yet.

    Means are taken in fp64 over what the optimizer has in fp32, where it has it, and rounded once. `init.from_run` and
    export take the result.

    Args:
        run_dir: gets the checkpoint.
        where: runs or checkpoint folders of one model.

    Raises ValueError if tensors do not agree, or the run has a checkpoint already.
    """
    if len(where) < 2:
        raise ValueError("a mean takes two checkpoints or more")
    if any(attempt.sealed for attempt in attempts(run_dir)):
        raise ValueError(f"{run_dir} already holds a checkpoint; name a folder of its own")
    sources = [find_commit(each) for each in where]
    readers = [read_tensors(commit.path) for commit in sources]
    first = readers[0]
    names = [name for name in first.names() if part_of(name) in MODEL_PARTS]
    for reader, commit in zip(readers, sources, strict=True):
        if [name for name in reader.names() if part_of(name) in MODEL_PARTS] != names:
            raise ValueError(f"{commit.path} holds other tensors than {sources[0].path}")
        reader.check({name: first.shape(name) for name in names})
    told = {
        "step": 0,
        "stage": "average",
        "steps_taken": None,
        "of": [{"path": str(commit.path), "files": _identity(commit)} for commit in sources],
    }
    path = write_whole_commit(
        run_dir, 0, first, names, lambda name: _mean(readers, name), told=told, recipe=sources[0].recipe
    )
    said = f"wrote {path}, the mean of {len(sources)} checkpoints"
    return Report(lines=[said], data={"path": str(path), "of": [str(commit.path) for commit in sources]})


def _mean(readers: Sequence[TensorReader], name: str) -> Tensor:
    total = torch.zeros(readers[0].shape(name), dtype=torch.float64)
    for reader in readers:
        master = state_name("master", name)
        total += reader.read(master if reader.holds(master) else name)
    return (total / len(readers)).to(readers[0].dtype(name))


def _identity(commit: Commit) -> str:
    """The checkpoint's own name for all of its bytes."""
    return (commit.path / commits.COMMIT).read_text(encoding="ascii").strip()
