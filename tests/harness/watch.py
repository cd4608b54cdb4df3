"""What a real step does beside computing: messages it sends, lengths that reach the layers, memory the tower keeps."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from data.types import PackedRow
from model.config import ModelConfig
from model.vlm import Row
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, NUM_ROWS, start
from tests.harness.rows import random_step
from tests.harness.storages import Storages
from train.state import TrainState
from train.step import train_step


@dataclass(frozen=True, kw_only=True)
class Message:
    """One call into a process group of two ranks or more, or one tensor of it."""

    axis: str
    """dp, tp, pp, replica, tied or world"""
    kind: str
    """send, recv, broadcast, allreduce, allgather, reduce_scatter, ... (c10d's words)"""
    dtype: torch.dtype
    numel: int
    """Of the whole: what is gathered, or what is reduced and scattered."""

    @property
    def is_integer(self) -> bool:
        return not self.dtype.is_floating_point

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


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
    pixels: int
    """Elements of the patches that reached this rank's pipeline stage."""


class _Messages(TorchDispatchMode):
    """Process groups are called through the dispatcher, so this sees what is really sent, whoever asks for it."""

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.seen: list[Message] = []
        named = {"world": dist.group.WORLD, "dp": groups.dp, "tp": groups.tp, "pp": groups.pp}
        named |= {"replica": groups.replica, "tied": groups.tied}
        self._axes = {group.group_name: axis for axis, group in named.items() if group is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            self._note(func, args)
        return func(*args, **(kwargs or {}))

    def _note(self, func: Any, args: Any) -> None:
        # Some operations take a reduction too, which is an object of torch's own like the group, and comes after it.
        group = dist.ProcessGroup.unbox(next(value for value in args if isinstance(value, torch.ScriptObject)))
        if group.size() == 1:
            return
        axis = self._axes.get(group.group_name, group.group_name)
        kind = func.name().split("::")[1].strip("_")
        tensors = _tensors(args[0])
        if kind.endswith("_base"):  # what is gathered comes first, what is scattered second
            kind, tensors = kind.removesuffix("_base"), [max(_tensors(args), key=torch.Tensor.numel)]
        self.seen += [Message(axis=axis, kind=kind, dtype=one.dtype, numel=one.numel()) for one in tensors]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def watch_step(
    parallel: ParallelConfig,
    stage: str,
    rows: list[PackedRow] | None = None,
    model: ModelConfig = MODEL,
) -> Watched:
    """One train step over `rows` (default: 4 uneven ones) with every message counted; run it on every rank.

    It is the second of two alike, so that what is only done once is not counted.
    """
    given = rows or random_step(100, NUM_ROWS, model.language.vocab_size)
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, stage, groups, model=model, steps=[given, given])
        train_step(made.parts, TrainState())
        mine = given[groups.dp_rank :: groups.dp_size]
        lengths: list[Lengths] = []
        seen: list[Row] = []
        first = made.built.module.chunks[0]
        first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

        def note_hidden(_: torch.nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
            hidden = inputs[0] if inputs else keywords["hidden_states"]
            samples = len(mine[len(seen) - 1].tokens)
            lengths.append(Lengths(samples=samples, row=seen[-1].tokens.shape[1], hidden=hidden.shape[0]))

        first.language.decoder.layers[0].register_forward_pre_hook(note_hidden, with_kwargs=True)
        with _Messages(groups) as messages:
            train_step(made.parts, TrainState())
        made.optimizer.close()
        pixels = sum(row.patches.numel() for row in seen if row.patches is not None)
        return Watched(messages=messages.seen, lengths=lengths, microbatches=len(seen), pixels=pixels)


def bytes_kept_by_tower(stage: str) -> int:
    """Bytes that the vision tower's forward leaves allocated beside its output, in one process, in a real step."""
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = start(ParallelConfig(), stage, groups)
        tower = made.built.module.chunks[0].vision
        assert tower is not None
        kept: list[int] = []
        forward = tower.forward

        def measured(*args: Any) -> torch.Tensor:
            with Storages() as storages:
                output = forward(*args)
            held = storages.held()
            # Views of weights and of the pixels are no activations.
            for known in (output, *tower.parameters(), *args[:1]):
                held.pop(known.untyped_storage()._cdata, None)
            kept.append(sum(held.values()))
            return output

        tower.forward = measured  # type: ignore[method-assign,assignment]
        train_step(made.parts, TrainState())
        made.optimizer.close()
        return max(kept)
