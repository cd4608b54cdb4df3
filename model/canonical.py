"""Names and shapes of weights in the whole model, and which box of each a rank holds.

Shapes are chosen so that a tensor-parallel slice is a plain box: fused query/key/value as (key/value groups, queries of
the group + 2, head, in), gate and up as (2, ffn, in). The vocabulary is the config's; rows that only pad it are cut.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.placement import language_split
from model.vlm import PipelineStage
from parallel.config import ParallelConfig
from parallel.groups import Groups

_CHUNK = re.compile(r"chunks\.(\d+)\.(.*)")
_LAYER = re.compile(r"^(language\.decoder)\.layers\.(\d+)\.")
_ROW_SPLIT = ("linear_proj.weight", "linear_fc2.weight")
_COLUMN_SPLIT = ("linear_fc1.weight", "linear_fc1.bias")
_VOCABULARY = ("word_embeddings.weight", "output_layer.weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """The part of a canonical tensor that this rank's parameter holds."""

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    owner: bool = True
    """False for the second copy of a tied embedding."""

    def view(self, parameter: Tensor) -> Tensor:
        """The parameter's data as this box, sharing memory; rows that only pad the vocabulary are left out."""
        flat = parameter.detach().view(-1)
        count = 1
        for size in self.shape:
            count *= size
        return flat[:count].view(self.shape)

    @property
    def is_split(self) -> bool:
        return self.shape != self.global_shape


def canonical_boxes(
    module: PipelineStage, config: ModelConfig, parallel: ParallelConfig, groups: Groups
) -> dict[str, Box]:
    """The box of every parameter of this rank's pipeline stage, by local parameter name."""
    split = language_split(config, parallel)
    boxes = {}
    for local_name, parameter in module.named_parameters():
        chunk = _CHUNK.match(local_name)
        assert chunk is not None, local_name
        before = sum(split[: int(chunk[1]) * parallel.pipeline + groups.pp_rank])
        name = _later_layer(chunk[2], before)
        owner = True
        if config.language.tie_embeddings and name == "language.output_layer.weight":
            name, owner = "language.embedding.word_embeddings.weight", False
        boxes[local_name] = _box(name, owner, parameter, config, groups)
    return boxes


def _later_layer(name: str, before: int) -> str:
    """A parameter's name in the whole model: language layers count on from those of earlier pieces."""
    return _LAYER.sub(lambda match: f"{match[1]}.layers.{int(match[2]) + before}.", name)


def _box(name: str, owner: bool, parameter: torch.nn.Parameter, config: ModelConfig, groups: Groups) -> Box:
    tp_size, tp_rank = groups.tp_size, groups.tp_rank
    shape = list(parameter.shape)
    split_dim: int | None = None
    if name.endswith(_VOCABULARY):
        rows, vocab = shape[0], config.language.vocab_size
        start = min(tp_rank * rows, vocab)
        return Box(
            name=name,
            global_shape=(vocab, *shape[1:]),
            offset=(start, *[0] * (len(shape) - 1)),
            shape=(min(rows, vocab - start), *shape[1:]),
            owner=owner,
        )
    if ".linear_qkv." in name:
        language = name.startswith("language.")
        assert config.vision is not None or language
        head = config.language.head_dim if language else config.vision.head_dim  # type: ignore[union-attr]
        heads = config.language.heads_per_group + 2 if language else 3
        shape = [shape[0] // (heads * head), heads, head, *shape[1:]]
        split_dim = 0
    elif name.startswith("language.") and name.endswith("linear_fc1.weight"):
        shape = [2, shape[0] // 2, *shape[1:]]
        split_dim = 1
    elif name.endswith(_COLUMN_SPLIT):
        split_dim = 0
    elif name.endswith(_ROW_SPLIT):
        split_dim = 1
    offset = [0] * len(shape)
    whole = list(shape)
    if split_dim is not None:
        offset[split_dim] = tp_rank * shape[split_dim]
        whole[split_dim] *= tp_size
    return Box(name=name, global_shape=tuple(whole), offset=tuple(offset), shape=tuple(shape), owner=owner)
