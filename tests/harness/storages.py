"""Memory that operations make and that is still there, by counting storages, on any device."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Storages(TorchDispatchMode):
    """Every storage that an operation inside makes, by weak reference. Tensors on the meta device have no memory."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most: int | None = None
        """Set it to a number of bytes, and it grows to the most that were held since; None watches nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.add(tensor)
        if self.most is not None:
            self.most = max(self.most, self.num_bytes)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor that no operation inside has made."""
        storage = tensor.untyped_storage()
        self._made.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))

    def held(self) -> dict[int, int]:
        """Bytes of each storage that is not gone, by the address that `tensor.untyped_storage()._cdata` has."""
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return {key: size for key, (_, size) in self._made.items()}

    @property
    def num_bytes(self) -> int:
        """Of all that is held."""
        return sum(self.held().values())
