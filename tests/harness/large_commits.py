"""Checkpoints with as many files and boxes as a 72B on 512 ranks writes, made in one process.

Each rank's share comes from what a save asks (train/checkpoint/entries.py); only the ranks themselves are not there.
"""

import io
import itertools
import json
import math
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.encoding.tokenizer import load_tokenizer
from launch import cli
from launch.checkpoints.listing import import_hf
from model.canonical import Box
from model.config import ModelConfig
from model.hf_weights import canonical_shape, hf_pieces
from parallel.config import ParallelConfig
from parallel.zero import Fragment
from tests.harness.runs import data_config, model_config
from tests.prove.planting import replace_name
from train.checkpoint import commits, disk, entries
from train.checkpoint.boxes import Chunk
from train.checkpoint.entries import MODEL_PARTS, OPTIMIZER, Writer
from train.checkpoint.tensors import write_boxes
from train.config import RunConfig
from train.resolve import compose, to_yaml


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A world, by its axes."""

    data: int = 8
    tensor: int = 8
    pipeline: int = 8

    @property
    def size(self) -> int:
        return self.data * self.tensor * self.pipeline


def write_large(run: RunConfig, step: int, ranks: Ranks, *, is_sparse: bool) -> Path:
    """One commit of `run` with weights and state of all parts.

    Args:
        is_sparse: files have their headers and their size, and no bytes on the disk behind these. Digests do not hold.
    """
    path = commits.attempt_path(run.run_dir, step, f"{step:08x}")
    path.mkdir(parents=True)
    files = {}
    for rank, (pipeline, tensor, data) in enumerate(
        itertools.product(range(ranks.pipeline), range(ranks.tensor), range(ranks.data))
    ):
        boxes = _boxes(run.model, ranks, pipeline, tensor)
        writer = Writer(tp_rank=tensor, dp_rank=data, dp_size=ranks.data)
        for part, chunks in _share(boxes, writer, 1.0 / step).items():
            name = f"{part}.{rank:05d}{commits.TENSORS}"
            if is_sparse:
                digest = _write_sparse(path / name, chunks)
            else:
                digest = write_boxes(path / name, [_own(chunk) for chunk in chunks])
            files[name] = commits.FileEntry(digest=digest, folder=path.name)
    told = {"step": step, "stage": "stage2", "loss": 1.0 / step, "steps_taken": step, "counters": {"tokens": step}}
    for name, text in ((commits.STATE, json.dumps(told)), (commits.RECIPE, to_yaml(run)), (commits.QUARANTINE, "")):
        files[name] = commits.FileEntry(digest=disk.write(path / name, [text.encode()]), folder=path.name)
    commits.seal(path, files)
    return path


def _boxes(model: ModelConfig, ranks: Ranks, pipeline: int, tensor: int) -> dict[str, Box]:
    """What a rank holds: pipeline stages divide the tensors in order, tensor ranks the longest dim that they can."""
    shapes = {name: canonical_shape(pieces) for name, pieces in hf_pieces(model).items()}
    names = list(shapes)[len(shapes) * pipeline // ranks.pipeline : len(shapes) * (pipeline + 1) // ranks.pipeline]
    boxes = {}
    for name in names:
        whole = shapes[name]
        offset, shape = [0] * len(whole), list(whole)
        dims = [dim for dim, size in enumerate(whole) if size % ranks.tensor == 0]
        if len(whole) > 1 and dims:
            dim = max(dims, key=lambda dim: whole[dim])
            shape[dim] //= ranks.tensor
            offset[dim] = tensor * shape[dim]
        boxes[name] = Box(name=name, global_shape=whole, offset=tuple(offset), shape=tuple(shape))
    return boxes


def _share(boxes: dict[str, Box], writer: Writer, value: float) -> dict[str, list[Chunk]]:
    """What a rank writes, by part; all weights have one value, and one element's memory."""
    weight, zero = torch.full((), value, dtype=torch.bfloat16), torch.zeros(())
    weights = {name: weight.expand(box.shape) for name, box in boxes.items()}
    chunks = {part: list(entries.weights_to_write(weights, boxes, writer, (part,))) for part in MODEL_PARTS}
    state = {"master": weight.float(), "exp_avg": zero, "exp_avg_sq": zero}
    fragments = []
    for name, start, stop in _dealt(boxes, writer):
        held = {kind: value.expand(stop - start) for kind, value in state.items()}
        fragments.append(Fragment(param_name=name, start=start, numel=stop - start, tensors=held))
    chunks[OPTIMIZER] = list(entries.state_held(fragments, boxes, writer))
    return {part: found for part, found in chunks.items() if found}


def _dealt(boxes: dict[str, Box], writer: Writer) -> Iterator[tuple[str, int, int]]:
    """ZeRO-1: data ranks divide the elements of all tensors, one after the other, into equal runs."""
    total = sum(math.prod(box.shape) for box in boxes.values())
    first, last = (total * (writer.dp_rank + more) // writer.dp_size for more in (0, 1))
    at = 0
    for name, box in boxes.items():
        size = math.prod(box.shape)
        start, stop = max(first - at, 0), min(last - at, size)
        if start < stop:
            yield name, start, stop
        at += size


def _own(chunk: Chunk) -> Chunk:
    return replace(chunk, data=chunk.data.clone(memory_format=torch.contiguous_format))


def _write_sparse(path: Path, chunks: list[Chunk]) -> disk.Digest:
    def headed(path: Path, pieces: Iterable[bytes | disk.Bytes], _: object) -> disk.Digest:
        length, header = itertools.islice(pieces, 2)
        assert isinstance(length, bytes) and isinstance(header, bytes)
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        size = 8 + struct.unpack("<Q", length)[0] + max(ends)
        with path.open("xb") as file:
            file.write(length + header)
            file.truncate(size)
        return disk.Digest(size=size, crc32c="00000000")

    mend = replace_name(disk, "write", lambda _: headed)
    try:
        return write_boxes(path, chunks)
    finally:
        mend()


def narrow(run_dir: Path, data: Path) -> RunConfig:
    """As many tensors as the 72B has, all of them small."""
    model = model_config()
    whole = compose("qwen2vl_72b_stage2").model
    assert model.vision is not None and whole.vision is not None
    model = replace(
        model,
        vision=replace(model.vision, depth=whole.vision.depth),
        language=replace(
            model.language,
            num_layers=whole.language.num_layers,
            tie_embeddings=False,
            vocab_size=max(model.language.vocab_size, load_tokenizer(data / "tokenizer").vocab_size),
        ),
    )
    made = compose("qwen2vl_72b_stage2")
    parallel = ParallelConfig()  # of the recipe alone: the commit's own layout is `Ranks`
    return replace(made, run_dir=str(run_dir), model=model, data=data_config(data), parallel=parallel)


def timed_sparse(folder: Path) -> dict[str, float]:
    """Seconds of what reads no tensors, on a 72B in its full size, by command."""
    run = replace(compose("qwen2vl_72b_stage2"), run_dir=str(folder / "sparse"))
    write_large(run, 100, Ranks(), is_sparse=True)
    return {name: seconds_of(name, run.run_dir) for name in ("list", "show")}


def timed_narrow(folder: Path, data: Path) -> dict[str, float]:
    """Seconds of every command, where tensors are as many as a 72B's and small, by command."""
    run = narrow(folder / "narrow", data)
    mend = replace_name(entries, "_WORTH_SPLITTING", lambda _: 1 << 9)  # else one rank would write each
    try:
        one, other = (write_large(run, step, Ranks(), is_sparse=False) for step in (100, 200))
    finally:
        mend()
    exported = folder / "exported"
    commands = (
        ("list", run.run_dir),
        ("show", run.run_dir),
        ("verify", str(one)),
        ("diff", str(one), str(other)),
        ("average", str(folder / "mean"), str(one), str(other)),
        ("export", str(one), str(exported)),
        ("prune", run.run_dir, "--last", "1"),
    )
    seconds = {words[0]: seconds_of(*words, status=words[0] == "diff") for words in commands}
    started = time.monotonic()
    import_hf(exported, replace(run, run_dir=str(folder / "imported")))
    return seconds | {"import": time.monotonic() - started}


def seconds_of(*words: str, status: int = 0) -> float:
    """How long `triptych checkpoint` takes for this. Raises AssertionError if it does not end with `status`."""
    said, started = io.StringIO(), time.monotonic()
    try:
        with redirect_stdout(said):
            cli.main(["checkpoint", *words, "--json"])
    except SystemExit as left:
        assert left.code == status, f"{words} ended with {left.code}: {said.getvalue()[:1000]}"
    return time.monotonic() - started
