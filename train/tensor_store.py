"""The one place that calls `torch.distributed.checkpoint` (DCP) to move bytes, with its traps answered.

DCP pickles `.metadata`. Folders are believed only after their digests held (train/commits.py), but a digest is no
signature, so the reader also refuses every pickled name that DCP's own metadata does not need.
"""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from train.agreement import CheckpointError
from train.boxes import BoxTensor, Chunk

_PICKLED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if self._is_known(module, name) else None
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} has no business in checkpoint metadata")
        return found

    @staticmethod
    def _is_known(module: str, name: str) -> bool:
        if (module, name) in _PICKLED:
            return True
        # A dotted name could walk from a harmless module to anything that it imports.
        plain = "." not in name
        if module == "torch.distributed.checkpoint.metadata":
            return plain and isinstance(getattr(dcp.metadata, name, None), type)
        return module == "torch" and plain and isinstance(getattr(torch, name, None), torch.dtype)


class _Reader(dcp.FileSystemReader):
    """DCP's reader with metadata read once and unpickled under a list of names."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._metadata: Metadata | None = None

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        if self._metadata is None:
            with (Path(self.path) / ".metadata").open("rb") as file:
                self._metadata = _unpickle(file)
        return self._metadata


def _unpickle(file: IO[bytes]) -> Metadata:
    metadata = _MetadataUnpickler(file).load()
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise pickle.UnpicklingError("not the metadata of a finished checkpoint")
    return metadata


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """DCP agrees on failures itself, but raises a BaseException, which handlers of ordinary errors let through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no process group means one process: it does
        try:
            yield
        except CheckpointException as error:
            if not dist.is_initialized() and not isinstance(error.failures[0][0], Exception):
                raise error.failures[0][0] from error  # Ctrl-C, which DCP takes for a failure like any other
            reasons = "; ".join(f"rank {rank}: {failure[0]!r}" for rank, failure in sorted(error.failures.items()))
            raise CheckpointError(f"{what} failed on {reasons}") from error


def write_tensors(path: Path, entries: dict[str, BoxTensor], group: dist.ProcessGroup | None) -> None:
    """Write every rank's boxes into an empty folder; boxes that several ranks offer are written by one of them.

    CheckpointError on every rank if one fails, also when boxes overlap or leave a hole.
    """
    _save(entries, dcp.FileSystemWriter(path, sync_files=True, overwrite=False), group, alone=False)


def write_one_by_one(path: Path, like: "TensorReader", make: Callable[[str], Tensor]) -> None:
    """Write whole tensors into an empty folder in one process, with no more than two of them in memory at a time.

    Reading one through `TensorReader` takes twice its size more for a moment: what is stored, as bytes and as a tensor.

    Args:
        like: names, shapes and dtypes of what is written.
        make: gives one tensor by name, on CPU, asked once each.

    Raises:
        CheckpointError: what `make` raised, or a file that could not be written.
    """
    entries = {name: _MadeOnDemand(like.shape(name), like.dtype(name), partial(make, name)) for name in like.names()}
    # DCP holds on to what it wrote until the file is finished: hence a file for each.
    writer = dcp.FileSystemWriter(path, single_file_per_rank=False, sync_files=True, overwrite=False)
    _save(entries, writer, None, alone=True)


class _MadeOnDemand(BoxTensor):
    """A whole tensor that exists only while it is written."""

    make: Callable[[], Tensor]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]) -> "_MadeOnDemand":
        whole = Chunk(offset=(0,) * len(shape), data=torch.empty(shape, dtype=dtype, device="meta"))
        tensor: Any = BoxTensor.__new__(cls, shape, [whole], dtype)
        tensor.make = make
        return tensor  # type: ignore[no-any-return]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        tensor = self.make()
        assert tensor.shape == self.shape and tensor.dtype == self.dtype, index.fqn
        return tensor


def _save(
    entries: Mapping[str, BoxTensor], writer: dcp.FileSystemWriter, group: dist.ProcessGroup | None, alone: bool
) -> None:
    with _plain_errors(f"writing {Path(writer.path).name}"):
        dcp.save(
            dict(entries),
            storage_writer=writer,
            # The defaults flatten nested dicts and pickle how they did it; our names are flat.
            planner=dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
            no_dist=alone,
        )


class TensorReader:
    """Whole tensors of a verified checkpoint folder, in one process; and names, shapes and dtypes of all of them."""

    def __init__(self, path: Path) -> None:
        self._reader = _Reader(path)
        stored = self._reader.read_metadata().state_dict_metadata
        self._stored = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}

    def names(self) -> list[str]:
        return sorted(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._stored[name].size)

    def dtype(self, name: str) -> torch.dtype:
        return self._stored[name].properties.dtype

    def read(self, name: str) -> Tensor:
        """One tensor on CPU; ValueError if the checkpoint has none of that name."""
        self.check({name: None})
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        self._load({name: tensor}, None, alone=True)
        return tensor

    def check(self, wanted: dict[str, tuple[int, ...] | None]) -> None:
        """ValueError naming every tensor that is absent or, where a shape is given, has another."""
        wrong = [f"missing {name}" for name in wanted if name not in self._stored]
        for name, shape in wanted.items():
            if shape is not None and name in self._stored and self.shape(name) != shape:
                wrong.append(f"{name} has shape {self.shape(name)}, {shape} is needed")
        if wrong:
            shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
            raise ValueError(f"{self._reader.path} does not fit: {shown}")

    def read_into(self, entries: dict[str, BoxTensor], group: dist.ProcessGroup | None) -> None:
        """Fill the boxes of every rank of `group` in place. Names and shapes were checked before, on all ranks."""
        self._load(entries, group, alone=not dist.is_initialized())

    def _load(self, entries: Any, group: dist.ProcessGroup | None, alone: bool) -> None:
        with _plain_errors(f"reading {Path(self._reader.path).name}"):
            dcp.load(
                entries,
                storage_reader=self._reader,
                planner=dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=group,
                no_dist=alone,
            )
