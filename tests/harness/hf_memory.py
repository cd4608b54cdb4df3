"""What a Hugging Face folder costs a rank: memory while it is read or written, elements and pages that are read."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import model.tensor_folder
from launch.checkpoints.export import export
from launch.checkpoints.listing import import_hf
from model.build import BuiltModel, build_model
from model.config import LanguageConfig, ModelConfig, VisionConfig
from model.hf_weights import canonical_shape, hf_pieces
from model.hf_write import write_hf
from model.tensor_folder import TensorFolder
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.filling import fill_from
from tests.harness.memory import peak_memory, touched_pages
from train.resolve import compose

LARGE = ModelConfig(
    name="large against noise",
    vision=VisionConfig(depth=2, embed_dim=320, num_heads=4),
    language=LanguageConfig(
        hidden_size=1536,
        num_layers=3,
        num_heads=12,
        num_kv_heads=4,
        ffn_size=4096,
        vocab_size=16001,
        mrope_section=(16, 24, 24),
        tie_embeddings=False,
    ),
)
"""131 M parameters: 262 MB in bf16, 525 MB in fp32. Stored tensors of 12 to 98 MB make up nine tenths of it; neither 2
nor 4 tensor ranks divide the vocabulary."""


def write_large(folder: Path, tokenizer: Path, dtype: torch.dtype, config: ModelConfig = LARGE) -> Path:
    """A folder of `config` with random weights in several shards."""
    table = hf_pieces(config)

    def read(name: str) -> torch.Tensor:
        return torch.randn(canonical_shape(table[name]), dtype=dtype)

    return write_hf(
        folder,
        config,
        read,
        tokenizer,
        dtype=dtype,
        min_pixels=3136,
        max_pixels=50176,
        max_shard_bytes=120_000_000,
    )


def _small(config: ModelConfig) -> ModelConfig:
    """Of the same parts, and next to nothing in memory: what is imported at first use is 5 to 10 MB of code that no
    shard has a part in, so each measure does the same to a small model first."""
    language = replace(config.language, hidden_size=512, num_heads=4, num_kv_heads=4, ffn_size=64, vocab_size=601)
    return replace(config, language=language)


def _write_small(scratch: str, folder: Path, config: ModelConfig) -> Path:
    """With the tokenizer that is in `folder`."""
    return write_large(Path(scratch) / "small", folder, torch.float32, _small(config))


@dataclass(kw_only=True)
class ImportCost:
    """What one rank needed to build its share of a model and fill it from a folder. Bytes, unless said otherwise."""

    growth: int
    own: int
    """Of the distinct storages of this rank's parameters."""
    largest: int
    """The largest stored tensor of those that this rank takes something from."""
    elements_beyond: int
    """Elements that were taken out of the file beyond those of this rank's boxes."""
    slices: int
    pages_beyond: int
    """Of mapped pages that were touched beyond the span from each slice's first byte to its last."""

    @property
    def excess(self) -> float:
        """Growth beyond the rank's own share, in units of the largest tensor."""
        return (self.growth - self.own) / self.largest


def import_cost(parallel: ParallelConfig, folder: Path, config: ModelConfig, precision: str) -> ImportCost:
    """Of this rank of the current world; run it on every rank. Memory and pages are taken in two readings, because
    looking at the pages allocates."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        with tempfile.TemporaryDirectory() as scratch:
            small = _small(config)
            fill_from(build_model(small, parallel, groups, dtype, config.parts), _write_small(scratch, folder, config))
        with peak_memory() as peak:
            built = build_model(config, parallel, groups, dtype, config.parts)
            fill_from(built, folder)
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in built.module.parameters()}
        with watched_reads() as reads:
            fill_from(built, folder)
        return ImportCost(
            growth=peak.growth,
            own=sum(storages.values()),
            largest=_largest_stored(built, folder),
            elements_beyond=reads.elements - sum(math.prod(box.shape) for box in built.boxes.values()),
            slices=reads.slices,
            pages_beyond=reads.pages - reads.spans,
        )


def _largest_stored(built: BuiltModel, folder: Path) -> int:
    stored = TensorFolder(folder)
    itemsize = {"F32": 4, "BF16": 2}
    table = hf_pieces(built.config)
    names = {piece.hf_name for box in built.boxes.values() for piece in table[box.name]}
    return max(math.prod(stored.shape(name)) * itemsize[stored.dtype(name)] for name in names)


@dataclass(kw_only=True)
class ExportCost:
    """Bytes."""

    growth: int
    model: int
    shard: int
    """The largest file of weights."""
    largest: int
    """The largest canonical tensor."""


def export_cost(folder: Path, tokenizer: Path, config: ModelConfig, shards: int = 5) -> ExportCost:
    """Of exporting a checkpoint of `folder`'s weights in about `shards` files, beside whatever else is there."""
    composed = compose("quickstart_stage1")
    data = replace(composed.data, tokenizer=str(tokenizer))
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        run = replace(composed, model=config, run_dir=f"{scratch}/run", data=data)
        import_hf(folder, run)
        first = replace(run, model=_small(config), run_dir=f"{scratch}/first_run")
        import_hf(_write_small(scratch, folder, config), first)
        export(first.run_dir, f"{scratch}/first_hf")
        itemsize = 4 if TensorFolder(folder).dtype("model.norm.weight") == "F32" else 2
        sizes = [math.prod(canonical_shape(pieces)) * itemsize for pieces in hf_pieces(config).values()]
        with peak_memory() as peak:
            export(run.run_dir, f"{scratch}/hf", max_shard_bytes=sum(sizes) // shards)
        files = [file.stat().st_size for file in Path(f"{scratch}/hf").glob("*.safetensors")]
        assert len(files) >= shards
        return ExportCost(growth=peak.growth, model=sum(sizes), shard=max(files), largest=max(sizes))


@dataclass
class Reads:
    """What was taken out of folders."""

    slices: int = 0
    elements: int = 0
    spans: int = 0
    """Bytes from each slice's first element to its last."""
    pages: int = 0
    """Bytes of pages that were touched, counted before each mapping was closed."""


@contextmanager
def watched_reads() -> Iterator[Reads]:
    """Count what this process takes out of `TensorFolder`s inside the block."""
    reads = Reads()
    mapped = model.tensor_folder._mapped

    @contextmanager
    def watched(path: Path) -> Iterator[Any]:
        with mapped(path) as opened:
            before = reads.slices
            yield _Opened(opened, reads)
            if reads.slices > before:
                reads.pages += touched_pages(path)

    model.tensor_folder._mapped = watched
    try:
        yield reads
    finally:
        model.tensor_folder._mapped = mapped


class _Opened:
    def __init__(self, opened: Any, reads: Reads) -> None:
        self._opened, self._reads = opened, reads

    def keys(self) -> Any:
        return self._opened.keys()

    def get_slice(self, name: str) -> "_Slice":
        return _Slice(self._opened.get_slice(name), self._reads)


class _Slice:
    def __init__(self, view: Any, reads: Reads) -> None:
        self._view, self._reads = view, reads

    def get_shape(self) -> Any:
        return self._view.get_shape()

    def get_dtype(self) -> Any:
        return self._view.get_dtype()

    def __getitem__(self, where: Any) -> torch.Tensor:
        part: torch.Tensor = self._view[where]
        places = where if isinstance(where, tuple) else (where,)
        shape = self._view.get_shape()
        first = last = 0
        for dim, size in enumerate(shape):
            start, stop, _ = (places[dim] if dim < len(places) else slice(None)).indices(size)
            first, last = first * size + start, last * size + stop - 1
        self._reads.slices += 1
        self._reads.elements += part.numel()
        self._reads.spans += max(0, last - first + 1) * part.element_size()
        return part
