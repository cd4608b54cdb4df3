"""From a config to this rank's share of the model, ready for the optimizer."""

from dataclasses import dataclass

import torch

from model.canonical import Box, canonical_boxes
from model.config import ModelConfig
from model.placement import check_layout
from model.vlm import PipelineStage
from parallel.config import ParallelConfig
from parallel.groups import Groups


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltModel:
    """This rank's pipeline stage and where its parameters lie in the whole model."""

    module: PipelineStage
    config: ModelConfig
    boxes: dict[str, Box]

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad]


def build_model(
    config: ModelConfig, parallel: ParallelConfig, groups: Groups, dtype: torch.dtype, trainable: tuple[str, ...]
) -> BuiltModel:
    """Build the pipeline stage with unset weights and freeze every part that `trainable` does not name.

    Raises ValueError when the model cannot have this layout, or has no part of a name that `trainable` gives.
    """
    check_layout(config, parallel)
    unknown = set(trainable) - set(config.parts)
    if unknown:
        raise ValueError(f"stage.trainable names {sorted(unknown)}; model {config.name} has {list(config.parts)}")
    with groups.device:  # norms would be made on the host
        module = PipelineStage(config, parallel, groups, dtype)
    boxes = canonical_boxes(module, config, parallel, groups)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(boxes[name].name.partition(".")[0] in trainable)
        # DeepSpeed counts a parameter's gradient once per tensor rank if it is split, once in all if it is not,
        # and never for the second copy of a tied embedding.
        parameter.tensor_model_parallel = boxes[name].is_split  # type: ignore[attr-defined]
        parameter.ds_pipe_replicated = not boxes[name].owner  # type: ignore[attr-defined]
        parameter.shared_embedding = (  # type: ignore[attr-defined]
            config.language.tie_embeddings
            and groups.tied is not None
            and boxes[name].name == "language.embedding.word_embeddings.weight"
        )
    return BuiltModel(module=module, config=config, boxes=boxes)
