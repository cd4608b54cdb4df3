"""Learning rates as a pure function of how much of the stage is done, so that a resume cannot bend the curve."""

import math
import re

from model.config import ModelConfig
from train.config import StageConfig

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_BOTTOM = ("vision.patch_embed.weight", "language.embedding.word_embeddings.weight")


def stage_progress(stage: StageConfig, steps: int, tokens: int) -> float:
    """Share of the stage that is done after `steps` steps and `tokens` tokens, at most 1."""
    if stage.steps is not None:
        return min(1.0, steps / stage.steps)
    assert stage.tokens is not None, "resolve refuses a stage without a length"
    return min(1.0, tokens / stage.tokens)


def rate_factor(stage: StageConfig, progress: float) -> float:
    """Learning rate as a share of the peak: linear warm-up, then the stage's curve down to `final_rate`."""
    if progress < stage.warmup:
        return progress / stage.warmup
    if stage.schedule == "constant":
        return 1.0
    after = (progress - stage.warmup) / (1.0 - stage.warmup) if stage.warmup < 1.0 else 1.0
    falling = 0.5 * (1.0 + math.cos(math.pi * after)) if stage.schedule == "cosine" else 1.0 - after
    return stage.final_rate + (1.0 - stage.final_rate) * falling


def part_rates(stage: StageConfig, progress: float) -> dict[str, float]:
    """Learning rate of each trainable part."""
    factor = rate_factor(stage, progress)
    return {part: stage.learning_rates[part] * factor for part in stage.trainable}


def layers_below_last(model: ModelConfig, name: str) -> int:
    """How many layers a canonical tensor lies below the last of its tower: the exponent of layer-wise decay.

    0 for the last layer and what follows it (final norm, head) and for the merger; the number of layers for patch
    embedding and token embedding, also where the embedding is the head as well.
    """
    depths = {"language": model.language.num_layers, "vision": model.vision.depth if model.vision else 0}
    depth = depths.get(name.partition(".")[0], 0)
    if match := _LAYER.search(name):
        return depth - 1 - int(match[1])
    return depth if name in _BOTTOM else 0
