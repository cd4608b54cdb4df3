"""What a real step does beside computing: messages it sends, lengths that reach the layers, memory the tower keeps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from model.vlm import Row
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, NUM_ROWS, start
from tests.harness.rows import random_step
from train.state import TrainState
from train.step import train_step


@dataclass(frozen=True, kw_only=True)
class Message:
    """One call into a process group."""

    kind: str
    """c10d's own name of the operation: send, recv_, broadcast_, allreduce_, ..."""
    dtype: torch.dtype
    numel: int

    @property
    def is_integer(self) -> bool:
        return not self.dtype.is_floating_point


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """One microbatch as it reached this rank's pipeline stage."""

    samples: int
    """Tokens of its samples, from the row that was handed in."""
    row: int
    """Places in the row, padding included."""
    hidden: int
    """Places in the first decoder layer's input on this rank."""


@dataclass(kw_only=True)
class Watched:
    """One step on one rank."""

    messages: list[Message]
    lengths: list[Lengths]
    microbatches: int


class _Messages(TorchDispatchMode):
    """Process groups are called through the dispatcher, so this sees what is really sent, whoever asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Message] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = args[0] if isinstance(args[0], list | tuple) else [args[0]]
            for tensor in tensors:
                while isinstance(tensor, list | tuple):
                    tensor = tensor[0]
                if isinstance(tensor, torch.Tensor):
                    name = func.name().split("::")[1]
                    self.seen.append(Message(kind=name, dtype=tensor.dtype, numel=tensor.numel()))
        return func(*args, **(kwargs or {}))


def watch_step(parallel: ParallelConfig, stage: str) -> Watched:
    """One train step with every message counted; run it on every rank."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        given = random_step(100, NUM_ROWS, MODEL.language.vocab_size)
        made = start(parallel, stage, groups, steps=[given])
        mine = given[groups.dp_rank :: groups.dp_size]
        lengths: list[Lengths] = []
        rows: list[Row] = []
        made.built.module.chunks[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))

        def note_hidden(_: torch.nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            hidden = inputs[0] if inputs else keywords["hidden_states"]
            lengths.append(
                Lengths(
                    samples=len(mine[len(rows) - 1].tokens),
                    row=rows[-1].tokens.shape[1],
                    hidden=hidden.shape[0],
                )
            )

        layer = made.built.module.chunks[0].language.decoder.layers[0]
        layer.register_forward_pre_hook(note_hidden, with_kwargs=True)
        with _Messages() as messages:
            train_step(made.parts, TrainState())
        made.optimizer.close()
        return Watched(messages=messages.seen, lengths=lengths, microbatches=len(rows))


class _Storages(TorchDispatchMode):
    """Every storage that an operation makes, by weak reference."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result


def bytes_kept_by_tower(stage: str) -> int:
    """Bytes that the vision tower's forward leaves allocated beside its output, in one process, in a real step."""
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = start(ParallelConfig(), stage, groups)
        tower = made.built.module.chunks[0].vision
        assert tower is not None
        kept: list[int] = []
        forward = tower.forward

        def measured(*args: Any) -> torch.Tensor:
            with _Storages() as storages:
                output = forward(*args)
            held = {key: size for key, (ref, size) in storages.made.items() if not ref.expired()}
            # Views of weights and of the pixels are no activations.
            for known in (output, *tower.parameters(), *args[:1]):
                held.pop(known.untyped_storage()._cdata, None)
            kept.append(sum(held.values()))
            return output

        tower.forward = measured  # type: ignore[method-assign,assignment]
        train_step(made.parts, TrainState())
        made.optimizer.close()
        return max(kept)
