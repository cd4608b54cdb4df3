"""Which parameters share a learning rate and a weight decay."""

from model.build import BuiltModel
from parallel.groups import Groups
from parallel.zero import ParamGroup, ZeroOptimizer
from train.config import RunConfig


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
        bucket_elements=run.parallel.reduce_bucket_elements,
    )


def param_groups(run: RunConfig, model: BuiltModel) -> list[ParamGroup]:
    """Two groups a trainable part, matrices and vectors, in the same order on every rank."""
    found = []
    for part in model.config.parts:
        if part not in run.stage.trainable:
            continue
        named = [(name, p) for name, p in model.trainable() if name.split(".")[0] == part]
        # By the shape in the whole model: the canonical box of a fused bias has several dims but is still a vector.
        matrices = [(name, p) for name, p in named if p.dim() > 1]
        vectors = [(name, p) for name, p in named if p.dim() <= 1]
        found.append(
            ParamGroup(
                name=f"{part}/matrices",
                part=part,
                named_parameters=matrices,
                weight_decay=run.optimizer.weight_decay,
            )
        )
        found.append(ParamGroup(name=f"{part}/vectors", part=part, named_parameters=vectors, weight_decay=0.0))
    return found
