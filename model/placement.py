"""Which layouts a model can have, and which language layers sit on which pipeline stage.

The vision tower and the merger are always on the first.
"""

from collections.abc import Iterator

from model.config import ModelConfig
from parallel.config import ParallelConfig


def language_split(model: ModelConfig, parallel: ParallelConfig) -> tuple[int, ...]:
    """Language layers of each piece of the pipeline: `parallel.split`, or even with earlier pieces lighter."""
    assert parallel.split != "auto", "train/balance.py puts numbers in its place before anything is built"
    if parallel.split is not None:
        return parallel.split
    base, extra = divmod(model.language.num_layers, parallel.num_pieces)
    # Vision and merger already weigh on the first piece, so what is left over goes to the later ones.
    return tuple(base + (piece >= parallel.num_pieces - extra) for piece in range(parallel.num_pieces))


def check_layout(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Raises ValueError with everything that keeps this model from this layout."""
    faults = list(layout_faults(model, parallel))
    if faults:
        raise ValueError("; ".join(faults))


def layout_faults(model: ModelConfig, parallel: ParallelConfig) -> Iterator[str]:
    """One line, with numbers and a cure, for each thing that keeps this model from this layout."""
    sizes = _split_sizes(model)
    fits = [ways for ways in range(1, parallel.tensor) if all(size % ways == 0 for size in sizes.values())]
    for name, size in sizes.items():
        if size % parallel.tensor:
            yield (
                f"{name}={size} cannot be split over parallel.tensor={parallel.tensor}; "
                f"{model.name} can be split {' or '.join(map(str, fits))} way(s)"
            )
    num_layers = model.language.num_layers
    if parallel.num_pieces > num_layers:
        yield (
            f"parallel.pipeline={parallel.pipeline} x parallel.chunks={parallel.chunks} = {parallel.num_pieces} pieces "
            f"for {num_layers} language layers leave some empty; have {num_layers} pieces or fewer"
        )
    if isinstance(parallel.split, tuple) and sum(parallel.split) != num_layers:
        yield (
            f"parallel.split={list(parallel.split)} places {sum(parallel.split)} layers but {model.name} has "
            f"{num_layers}; change the entries to add up to {num_layers}"
        )
    if isinstance(parallel.split, tuple) and min(parallel.split) < 1:
        yield f"parallel.split={list(parallel.split)}: every piece needs at least 1 language layer"


def _split_sizes(model: ModelConfig) -> dict[str, int]:
    """What is dealt out whole to tensor ranks. The vocabulary is padded instead."""
    sizes = {
        "model.language.num_heads": model.language.num_heads,
        "model.language.num_kv_heads": model.language.num_kv_heads,
        "model.language.ffn_size": model.language.ffn_size,
    }
    if model.vision:
        sizes["model.vision.num_heads"] = model.vision.num_heads
        sizes["model.vision.embed_dim x mlp_ratio"] = model.vision.ffn_size
    return sizes
