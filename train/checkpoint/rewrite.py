"""Checkpoints of whole tensors, written by one process with one of them in memory at a time."""

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from train.checkpoint import commits, disk
from train.checkpoint.commits import TENSORS, Commit, FileEntry
from train.checkpoint.entries import part_of
from train.checkpoint.load import read_tensors
from train.checkpoint.tensors import Described, write_whole
from train.errors import CheckpointError


def rewrite_commit(commit: Commit, mended: Mapping[str, Callable[[], Tensor]], note: Mapping[str, Any]) -> Path:
    """Write a checkpoint anew beside itself and seal it, in one process, tensor by tensor. Returns its folder.

    The new one has the same step and is sealed later, so the run goes on from it. Parts without a mended tensor are
    referred to. The old one stays, and so does every other: nothing is pruned.

    Args:
        commit: lies in a run's checkpoints folder.
        mended: what makes each tensor that is another one now, whole and on CPU, in the shape and dtype that `commit`
            has it in, by its stored name.
        note: goes into state.json, over what `commit` has there.

    Raises:
        CheckpointError: as `write_whole_commit`.
    """
    run_dir = commit.path.parent.parent
    reader = read_tensors(commit.path)
    parts = {part_of(name) for name in mended}
    return write_whole_commit(
        run_dir,
        commit.step,
        reader,
        [name for name in reader.names() if part_of(name) in parts],
        lambda name: mended.get(name, partial(reader.read, name))(),
        told=commit.state | dict(note),
        recipe=commit.recipe,
        kept={name: entry for name, entry in commit.files.items() if part_of(name) not in parts},
    )


def write_whole_commit(
    run_dir: str | Path,
    step: int,
    like: Described,
    names: Sequence[str],
    make: Callable[[str], Tensor],
    *,
    told: Mapping[str, Any],
    recipe: str,
    kept: Mapping[str, FileEntry] | None = None,
) -> Path:
    """Write a checkpoint with a file for each part, and seal it. Returns its folder.

    Args:
        like: has shape and dtype of each tensor.
        names: of the tensors, as they are stored.
        make: gives one by name, whole and on CPU, asked once each.
        told: state.json, but for `saved_at`.
        recipe: YAML.
        kept: files of other checkpoints of the run that belong to this one as well.

    Raises:
        CheckpointError: the disk has too little room, what `make` raised, or a file that could not be written. Nothing
            of it is left then, nor where the process is interrupted.
    """
    path = commits.attempt_path(run_dir, step, secrets.token_hex(4))
    nbytes = sum(math.prod(like.shape(name)) * like.dtype(name).itemsize for name in names)
    new = [folder for folder in (path.parent, path.parent.parent) if not folder.exists()]
    try:
        _check_room(path, nbytes)
        files = dict(kept or {})
        disk.make_folder(path)
        for part in dict.fromkeys(map(part_of, names)):
            mine = [name for name in names if part_of(name) == part]
            digest = write_whole(path / f"{part}.00000{TENSORS}", like, mine, make)
            files[f"{part}.00000{TENSORS}"] = FileEntry(digest=digest, folder=path.name)
        state = json.dumps(dict(told) | {"saved_at": commits.now()}, indent=1)
        for name, text in ((commits.STATE, state), (commits.RECIPE, recipe)):
            files[name] = FileEntry(digest=disk.write(path / name, [text.encode()]), folder=path.name)
        commits.seal(path, files)
    except BaseException as error:
        left = _undone(path, new)
        if not isinstance(error, OSError | ValueError):
            raise
        raise CheckpointError(f"writing {path.name} failed: {error}{left}") from error
    return path


def _check_room(path: Path, nbytes: int) -> None:
    free = disk.free_bytes(path.parent)
    if nbytes > free:
        raise OSError(f"it takes {nbytes / 1e9:.3g} GB, and the disk of {path.parent} has {free / 1e9:.3g} GB left")


def _undone(path: Path, new: Sequence[Path]) -> str:
    """Remove a folder that was not sealed, and those around it that it was made in; what to say if that fails, too."""
    try:
        if path.exists():
            disk.remove_folder(path)
        for folder in new:
            if folder.exists():
                folder.rmdir()
    except OSError as error:
        return f"; what there is of it is left in {path}: {error}"
    return ""
