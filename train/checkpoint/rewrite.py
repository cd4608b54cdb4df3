"""A checkpoint with other values in some of its tensors, by one process."""

import json
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from train.checkpoint import commits, disk
from train.checkpoint.commits import TENSORS, Commit, FileEntry
from train.checkpoint.entries import part_of
from train.checkpoint.load import read_tensors
from train.checkpoint.tensors import write_whole
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
        CheckpointError: what a maker raised, or a file that could not be written. The folder stays, unsealed.
    """
    path = commits.attempt_path(commit.path.parent.parent, commit.step, secrets.token_hex(4))
    reader = read_tensors(commit.path)
    parts = {part_of(name) for name in mended}
    files = {name: entry for name, entry in commit.files.items() if part_of(name) not in parts}
    told = commit.state | dict(note) | {"saved_at": commits.now()}
    try:
        disk.make_folder(path)
        for part in parts:
            names = [name for name in reader.names() if part_of(name) == part]
            digest = write_whole(
                path / f"{part}.00000{TENSORS}",
                reader,
                names,
                lambda name: mended.get(name, partial(reader.read, name))(),
            )
            files[f"{part}.00000{TENSORS}"] = FileEntry(digest=digest, folder=path.name)
        texts = {commits.STATE: json.dumps(told, indent=1), commits.RECIPE: commit.recipe}
        for name, text in texts.items():
            files[name] = FileEntry(digest=disk.write(path / name, [text.encode()]), folder=path.name)
        commits.seal(path, files)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"writing {path.name} failed: {error}") from error
    return path
