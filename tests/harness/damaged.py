"""Checkpoints made in one process, and made wrong inside while every digest holds, as a tool that edits them would."""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from model.canonical import Box
from model.hf_weights import canonical_shape, hf_pieces
from parallel.zero import Fragment
from train import commits
from train.checkpoint import save_commit
from train.config import RunConfig
from train.resolve import to_yaml
from train.tensor_store import TensorReader

Change = Callable[[Tensor], None]
"""Changes a whole tensor in place."""
COUNTERS = {"counters": {"step": 7, "tokens": 12_345_678_901}, "cursor": {"window": 3, "row": 5}}


@dataclass
class _Held:
    """An optimizer's state, as a save asks for it."""

    steps_taken: int
    held: list[Fragment]

    def fragments(self) -> list[Fragment]:
        return self.held

    def loaded(self, steps_taken: int) -> None:
        self.steps_taken = steps_taken


def save_trained(run: RunConfig, step: int, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A checkpoint of `run` with random weights, and random masters and moments of the parts that its stage trains."""
    generator = torch.Generator().manual_seed(step)
    weights, boxes, held = {}, {}, []
    for name, pieces in hf_pieces(run.model).items():
        shape = canonical_shape(pieces)
        master = torch.randn(shape, generator=generator) * 0.1
        weights[name] = master.to(dtype)
        boxes[name] = Box(name=name, global_shape=shape, offset=(0,) * len(shape), shape=shape)
        if name.partition(".")[0] in run.stage.trainable:
            first = torch.randn(shape, generator=generator) * 1e-3
            state = {"master": master, "exp_avg": first, "exp_avg_sq": first.square() + 1e-9}
            flat = {kind: tensor.view(-1) for kind, tensor in state.items()}
            held.append(Fragment(param_name=name, start=0, numel=master.numel(), tensors=flat))
    return save_commit(run.run_dir, step, weights, boxes, _Held(step, held), COUNTERS, to_yaml(run), tp_rank=0, keep=99)


def reseal(path: Path) -> None:
    """Make every digest hold for what now lies in the folder."""
    names = list(commits.listed_files(path))
    commits.seal(path, {name: commits.digest(path / name) for name in names})


def change_values(path: Path, name: str, change: Change) -> None:
    """Change a stored tensor in the files that hold it, whatever layout wrote them."""
    whole = TensorReader(path).read(name)
    change(whole)
    stored = _metadata(path)
    entry = stored.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata)
    assert stored.storage_data is not None
    places: dict[Any, Any] = {(index.fqn, index.offset): info for index, info in stored.storage_data.items()}
    for chunk in entry.chunks:
        part = whole
        for dim, (start, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            part = part.narrow(dim, start, size)
        written = io.BytesIO()
        torch.save(part.clone(memory_format=torch.contiguous_format), written)
        place = places[name, chunk.offsets]
        assert len(written.getvalue()) == place.length, "a tensor of the same shape takes other bytes"
        with (path / place.relative_path).open("r+b") as file:
            file.seek(place.offset)
            file.write(written.getvalue())
    reseal(path)


def forget(path: Path, name: str) -> None:
    """Leave a stored tensor out of the table of contents."""
    stored = _metadata(path)
    del stored.state_dict_metadata[name]
    _write_metadata(path, stored)


def store_under(path: Path, name: str, other: str) -> None:
    """List a stored tensor under a second name."""
    stored = _metadata(path)
    assert stored.storage_data is not None
    stored.state_dict_metadata[other] = stored.state_dict_metadata[name]
    for index, info in list(stored.storage_data.items()):
        if index.fqn == name:
            stored.storage_data[MetadataIndex(other, index.offset, index.index)] = info
    _write_metadata(path, stored)


def _metadata(path: Path) -> Metadata:
    with (path / ".metadata").open("rb") as file:
        stored = pickle.load(file)
    assert isinstance(stored, Metadata)
    return stored


def _write_metadata(path: Path, stored: Metadata) -> None:
    (path / ".metadata").write_bytes(pickle.dumps(stored))
    reseal(path)
