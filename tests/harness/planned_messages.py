"""Collectives of a rank's passes, counted where torch starts them, beside what a plan says."""

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launch.planning.messages import Messages
from launch.planning.piece import cut
from model.activations import kernels_of
from model.placement import language_split
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, STAGES, start
from tests.harness.planned_memory import planned_row
from tests.harness.rows import sized_row

ROWS = [(120, [(1, 8, 12)]), (64, []), (90, [(2, 4, 8), (1, 8, 8)])]


def pass_messages(parallel: ParallelConfig, stage: str) -> list[tuple[Messages, Messages]]:
    """Counted and planned messages of each row's forward, then of its backward, on a rank that has a whole pipeline."""
    kernels = kernels_of(parallel, "fp32", on_gpu=False)
    (piece,) = cut(MODEL, parallel, kernels, STAGES[stage], language_split(MODEL, parallel))
    found = []
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        generator = np.random.default_rng(0)
        packed = [sized_row(generator, MODEL.language.vocab_size, tokens, grids) for tokens, grids in ROWS]
        made = start(parallel, stage, groups, steps=[packed])
        _, announced = made.parts.batches.next()
        for row, (tokens, grids) in zip(announced.rows, ROWS, strict=True):
            sizes = planned_row(MODEL, tokens, grids)
            with _Collectives(parallel.tensor) as seen:
                losses = made.built.module.chunks[0](row)
            found.append((seen.messages, piece.tensor_messages(sizes, backward=False)))
            with _Collectives(parallel.tensor) as seen:
                if losses.requires_grad:
                    losses.sum().backward()
            found.append((seen.messages, piece.tensor_messages(sizes, backward=True)))
        made.optimizer.close()
    return found


class _Collectives(TorchDispatchMode):
    """Bytes as a ring of `ranks` sends them."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.messages = Messages()
        self._share = (ranks - 1) / ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            # (tensors, ...), (all, part, ...) and (part, all, ...): what all ranks have together is the largest.
            given = args[0] if name == "c10d::allreduce_" else args[:2]
            rounds = 2 if name == "c10d::allreduce_" else 1
            whole = max(tensor.nbytes for tensor in given if isinstance(tensor, torch.Tensor))
            self.messages += Messages(rounds=rounds, nbytes=rounds * whole * self._share)
        return func(*args, **(kwargs or {}))
