"""What each pipeline stage of any split holds, from the parameters of one tensor rank.

They are built once: a search asks for some hundred pipeline stages, and building one takes a tenth of a second.
"""

import re
from collections.abc import Sequence

import torch

from model.build import build_model
from model.memory import HeldBytes, held_bytes
from parallel.config import ParallelConfig
from parallel.world import imagined_rank
from train.config import RunConfig
from train.optimizer import param_groups

_LAYER = re.compile(r"^language\..*\.layers\.(\d+)\.")
_EMBEDDING = "language.embedding.word_embeddings.weight"
_INPUT = ("vision.", "merger.", "language.embedding.")

Sized = tuple[str, int]
"""A parameter's name in the whole model, and its elements on one tensor rank."""


class Weights:
    """A run's parameters as tensor rank 0 would hold them without a pipeline. For processes that are in no world."""

    def __init__(self, run: RunConfig, tensor: int) -> None:
        """Build it on the meta device, where it takes no memory."""
        self._run = run
        parallel = ParallelConfig(tensor=tensor)
        with imagined_rank(parallel, tensor, rank=0) as groups:
            built = build_model(run.model, parallel, groups, torch.float32, run.stage.trainable)
            self._trained: list[list[Sized]] = [
                [(built.boxes[name].name, parameter.numel()) for name, parameter in group.named_parameters]
                for group in param_groups(run, built)
            ]
            self._frozen: list[Sized] = [
                (built.boxes[name].name, parameter.numel())
                for name, parameter in built.module.named_parameters()
                if not parameter.requires_grad
            ]

    def held(self, split: Sequence[int], stages: int, dp_size: int) -> list[HeldBytes]:
        """Bytes of tensor rank 0 and data rank 0 of each pipeline stage, which have as much as any but for alignment:
        equal to train/optimizer.py: state_bytes of the ranks themselves."""
        return [
            held_bytes(
                [self._on(group, stage, split, stages) for group in self._trained],
                sum(self._on(self._frozen, stage, split, stages)),
                dp_size=dp_size,
                dp_rank=0,
                precision=self._run.precision,
                bucket_elements=self._run.parallel.reduce_bucket_elements,
            )
            for stage in range(stages)
        ]

    def _on(self, parameters: Sequence[Sized], stage: int, split: Sequence[int], stages: int) -> list[int]:
        """Elements of those parameters that a pipeline stage has."""
        starts = [sum(split[:piece]) for piece in range(len(split))]
        pieces = range(stage, len(split), stages)
        layers = {layer for piece in pieces for layer in range(starts[piece], starts[piece] + split[piece])}
        tied_copy = self._run.model.language.tie_embeddings and stages > 1 and stage == stages - 1
        found = []
        for name, numel in parameters:
            match = _LAYER.match(name)
            if match:
                here = int(match[1]) in layers
            elif name.startswith(_INPUT):
                here = stage == 0 or (tied_copy and name == _EMBEDDING)
            else:  # the last norm and the head
                here = stage == stages - 1
            if here:
                found.append(numel)
        return found
