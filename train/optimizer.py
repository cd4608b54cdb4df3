"""Which parameters share a learning rate and a weight decay."""

from typing import NamedTuple

import torch

from model.build import BuiltModel
from model.hf_weights import hf_pieces
from model.memory import HeldBytes, held_bytes
from parallel.groups import Groups
from parallel.zero import ParamGroup, ZeroOptimizer
from train.config import RunConfig
from train.rates import layers_below_last


class _Key(NamedTuple):
    """What the parameters of a group have in common."""

    part: str
    below: int
    """Layers below the last one; 0 for all of a part without layer-wise decay."""
    decays: bool


def build_optimizer(run: RunConfig, model: BuiltModel, groups: Groups) -> ZeroOptimizer:
    """ZeRO-1 AdamW over the trainable parts. Frozen parts have no state."""
    return ZeroOptimizer(
        model.module,
        param_groups(run, model),
        groups,
        betas=run.optimizer.betas,
        eps=run.optimizer.eps,
        clip_norm=run.optimizer.clip_norm,
        bf16=run.precision == "bf16",
        parallel=run.parallel,
    )


def state_bytes(run: RunConfig, model: BuiltModel, dp_size: int, dp_rank: int = 0) -> HeldBytes:
    """What this rank of the tensor and pipeline axes will hold once the optimizer is built; a model on the meta device
    will do. Rank 0 of the data axis holds as much as any, but for alignment and parameters that two shares cut."""
    return held_bytes(
        [[parameter.numel() for _, parameter in group.named_parameters] for group in param_groups(run, model)],
        sum(parameter.numel() for parameter in model.module.parameters() if not parameter.requires_grad),
        dp_size=dp_size,
        dp_rank=dp_rank,
        precision=run.precision,
        bucket_elements=run.parallel.reduce_bucket_elements,
    )


def param_groups(run: RunConfig, model: BuiltModel) -> list[ParamGroup]:
    """Matrices and vectors of each trainable part; with layer-wise decay, of each of its layers.

    Every rank lists the same groups in the same order, whatever its pipeline stage holds of them: they follow from the
    names in the whole model. The second copy of a tied embedding goes by the embedding's name.
    """
    stage = run.stage

    def key_of(name: str) -> _Key:
        part = name.partition(".")[0]
        below = layers_below_last(model.config, name) if part in stage.layer_decays else 0
        return _Key(part, below, decays=not is_vector(name))

    # From the bottom up, matrices first; of a part at a time.
    keys = sorted({key_of(name) for name in hf_pieces(model.config)}, key=lambda key: (-key.below, not key.decays))
    members: dict[_Key, list[tuple[str, torch.nn.Parameter]]] = {
        key: [] for part in model.config.parts for key in keys if key.part == part
    }
    for local_name, parameter in model.trainable():
        members[key_of(model.boxes[local_name].name)].append((local_name, parameter))
    return [
        ParamGroup(
            name=f"{key.part}/{'matrices' if key.decays else 'vectors'}/{key.below} below the last",
            part=key.part,
            named_parameters=found,
            weight_decay=stage.weight_decays.get(key.part, run.optimizer.weight_decay) if key.decays else 0.0,
            rate_factor=stage.layer_decays.get(key.part, 1.0) ** key.below,
        )
        for key, found in members.items()
        if key.part in stage.trainable
    ]


def is_vector(name: str) -> bool:
    """Whether a canonical tensor is a norm's weight or a bias, which take no weight decay.

    By name: the canonical box of a fused bias has several dims.
    """
    return name.endswith(".bias") or "norm" in name
