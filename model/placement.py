"""Which language layers sit on which pipeline stage. The vision tower and the merger are always on the first."""

from model.config import ModelConfig
from parallel.config import ParallelConfig


def language_split(model: ModelConfig, parallel: ParallelConfig) -> tuple[int, ...]:
    """Language layers of each pipeline stage: `parallel.split`, or even with earlier stages lighter.

    Raises ValueError when the layers do not fill the pipeline stages.
    """
    num_layers = model.language.num_layers
    if parallel.split is not None:
        if sum(parallel.split) != num_layers or min(parallel.split) < 0:
            raise ValueError(
                f"parallel.split {list(parallel.split)} places {sum(parallel.split)} language layers; "
                f"model {model.name} has {num_layers}"
            )
        return parallel.split
    if num_layers < parallel.pipeline:
        raise ValueError(
            f"model {model.name} has {num_layers} language layers for parallel.pipeline={parallel.pipeline} stages; "
            f"use parallel.pipeline={num_layers} or fewer, or give parallel.split"
        )
    base, extra = divmod(num_layers, parallel.pipeline)
    # Vision and merger already weigh on the first stage, so what is left over goes to the later ones.
    return tuple(base + (stage >= parallel.pipeline - extra) for stage in range(parallel.pipeline))
