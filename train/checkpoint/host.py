"""Copies of boxes in host memory, from which a save is written while training goes on."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from train.checkpoint.boxes import Chunk

_Place = tuple[str, str, tuple[int, ...]]
"""File, tensor and offset of a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aside:
    """How to save from a thread while main threads and devices may be stuck for ever."""

    summed: Callable[[Sequence[float]], list[float]]
    """Sums numbers over the ranks that save, in the same order on all of them, without a collective."""
    ready: torch.cuda.Event | None
    """On CUDA: when the device has come as far as the state that is saved."""
    device: torch.device


class HostCopies:
    """Memory that the next save copies into again: to pin it takes longer than to copy."""

    def __init__(self) -> None:
        self._held: dict[_Place, Tensor] = {}

    def copied(self, files: Mapping[str, Sequence[Chunk]], aside: Aside | None) -> dict[str, list[Chunk]]:
        """All chunks in host memory, when this returns. What was held for others goes, as of a part written once."""
        before, self._held = self._held, {}
        with beside(aside):
            copies = {
                name: [self._copy(before, name, chunk, pin=aside is None) for chunk in chunks]
                for name, chunks in files.items()
            }
        if aside is None and torch.cuda.is_available():
            torch.cuda.synchronize()
        return copies

    def _copy(self, before: Mapping[_Place, Tensor], file: str, chunk: Chunk, pin: bool) -> Chunk:
        key = (file, chunk.name, chunk.offset)
        host = before.get(key)
        if host is None or (host.shape, host.dtype) != (chunk.data.shape, chunk.data.dtype):
            # To pin memory waits for a device, which may be stuck.
            host = torch.empty_like(chunk.data, device="cpu", pin_memory=pin and chunk.data.device.type == "cuda")
        self._held[key] = host
        return replace(chunk, data=host.copy_(chunk.data, non_blocking=True))


@contextlib.contextmanager
def beside(aside: Aside | None) -> Iterator[None]:
    """What is asked of the device in here goes past what its own stream is stuck in."""
    if aside is None or aside.ready is None:
        yield
        return
    with torch.cuda.device(aside.device):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            stream.wait_event(aside.ready)
            yield
        stream.synchronize()
