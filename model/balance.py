"""Which split of the language layers keeps every pipeline stage equally busy.

The vision tower and the merger weigh on the first pipeline stage, the head on the last, and what is frozen or computed
again in backward changes what each of them costs: so the split depends on the training stage and on its mixture.

A step of 1F1B takes what all pipeline stages need for one microbatch, which no split changes, and what the busiest one
needs for each of the others: so the busiest one is what counts, however many microbatches there are.
"""

from model.config import ModelConfig
from model.flops import Work, part_flops
from parallel.config import ParallelConfig


def balanced_split(
    model: ModelConfig, parallel: ParallelConfig, trainable: tuple[str, ...], work: Work
) -> tuple[int, ...]:
    """Language layers of each piece of the pipeline, in the model's order (as `parallel.split` lists them).

    Layers are given one by one to the pipeline stage that is least busy, by FLOPs, after each piece has its first one;
    which is optimal, because layers are alike. Pieces of a pipeline stage share its layers evenly.

    Args:
        work: what a step of the recipe's own mixture processes; only its proportions matter.
    """
    loads, layer = _fixed_loads(model, parallel, trainable, work)
    counts = [parallel.chunks] * parallel.pipeline
    for _ in range(model.language.num_layers - sum(counts)):
        # Of equals the last: vision comes first in a step, so a late start is worse than a late end.
        stage = min(range(parallel.pipeline), key=lambda s: (loads[s] + (counts[s] + 1) * layer, -s))
        counts[stage] += 1
    pieces = []
    for chunk in range(parallel.chunks):
        for count in counts:
            base, extra = divmod(count, parallel.chunks)
            pieces.append(base + (chunk >= parallel.chunks - extra))
    return tuple(pieces)


def stage_shares(
    model: ModelConfig, parallel: ParallelConfig, trainable: tuple[str, ...], work: Work, split: tuple[int, ...]
) -> list[float]:
    """Share of a step's FLOPs on each pipeline stage under `split`, recomputation included; they sum to 1."""
    loads, layer = _fixed_loads(model, parallel, trainable, work)
    for piece, count in enumerate(split):
        loads[piece % parallel.pipeline] += count * layer
    return [load / sum(loads) for load in loads]


def _fixed_loads(
    model: ModelConfig, parallel: ParallelConfig, trainable: tuple[str, ...], work: Work
) -> tuple[list[float], float]:
    """FLOPs of each pipeline stage without decoder layers, and of one decoder layer."""
    parts = part_flops(model, trainable, work, parallel.recompute)
    loads = [0.0] * parallel.pipeline
    loads[0] += parts.get("vision", 0) + parts.get("merger", 0)
    loads[-1] += parts["head"]
    return loads, parts["layers"] / model.language.num_layers
