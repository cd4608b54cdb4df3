"""Checkpoints made in one process, and made wrong inside while every digest holds, as a tool that edits them would."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.canonical import Box
from model.hf_weights import canonical_shape, hf_pieces
from parallel.zero import Fragment
from tests.harness.commits import save_commit
from train.checkpoint import commits, disk
from train.checkpoint.boxes import Chunk, inside
from train.checkpoint.load import read_tensors
from train.checkpoint.tensors import read_header, write_boxes
from train.config import RunConfig
from train.resolve import to_yaml

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
    return save_commit(run.run_dir, step, weights, boxes, _Held(step, held), COUNTERS, to_yaml(run), keep=99)


def reseal(path: Path) -> None:
    """Make every digest hold for what now lies in the folder."""
    files = {
        name: commits.FileEntry(digest=disk.digest(path / name), folder=path.name) if (path / name).exists() else entry
        for name, entry in commits.listed_files(path).items()
    }
    (path / commits.FILES).unlink()
    commits.seal(path, files)


def change_values(path: Path, name: str, change: Change) -> None:
    """Change a stored tensor in the files that hold it, whatever layout wrote them."""
    whole = read_tensors(path).read(name)
    change(whole)

    def changed(chunk: Chunk) -> list[Chunk]:
        if chunk.name != name:
            return [chunk]
        return [replace(chunk, data=whole[inside(chunk.offset, tuple(chunk.data.shape), (0,) * whole.dim())].clone())]

    _edit(path, changed)


def forget(path: Path, name: str) -> None:
    """Leave a stored tensor out."""
    _edit(path, lambda chunk: [] if chunk.name == name else [chunk])


def store_under(path: Path, name: str, other: str) -> None:
    """Store a tensor under a second name as well."""
    _edit(path, lambda chunk: [chunk, replace(chunk, name=other)] if chunk.name == name else [chunk])


def _edit(path: Path, edit: Callable[[Chunk], list[Chunk]]) -> None:
    for name, file in commits.open_commit(path).tensor_files.items():
        boxes, data = read_header(file, name), load_file(file)
        chunks = [Chunk(name=box.name, whole=box.whole, offset=box.offset, data=data[box.key]) for box in boxes]
        edited = [made for chunk in chunks for made in edit(chunk)]
        if len(edited) != len(chunks) or any(one is not other for one, other in zip(edited, chunks, strict=True)):
            (path / name).unlink(missing_ok=True)  # not there where it is another checkpoint's
            write_boxes(path / name, edited)
    reseal(path)
