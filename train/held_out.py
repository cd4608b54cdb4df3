"""Which held-out samples a run is measured by: one window of a plan of their own, the same in every evaluation."""

import math
from dataclasses import replace

from data.config import DataConfig
from data.loading.rows import SourceIndex, open_indexes
from data.plan.plan import Plan
from train.config import EvaluateConfig

_ANY_NUMBER = 2**31


def held_out(data: DataConfig, evaluate: EvaluateConfig) -> tuple[DataConfig, list[SourceIndex]]:
    """The data of an evaluation, and its indexes: one window with so many samples of each source, none twice.

    Raises ValueError if an index does not fit its shards or the run's tokenizer.
    """
    indexes = open_indexes(replace(data, sources=evaluate.sources, run_length=1))
    counts = [min(evaluate.samples, len(index)) for index in indexes]
    sources = [replace(each, weight=float(count)) for each, count in zip(evaluate.sources, counts, strict=True)]
    config = replace(
        data,
        sources=tuple(sources),
        window=sum(counts),
        weights_are="samples",
        run_length=1,
        bad_share=1.0,  # what cannot be read of them is told, and ends no run
        bad_in_row=_ANY_NUMBER,
    )
    return config, indexes


def rows_for(config: DataConfig, indexes: list[SourceIndex], dp_size: int, least: int) -> DataConfig:
    """The same in steps of as many rows as training has, or of fewer where one step holds them all; each replica has a
    multiple of `least`."""
    unit = dp_size * least
    rows = min(config.rows_per_step, Plan(config, indexes).rows_of_window(0))
    return replace(config, rows_per_step=unit * math.ceil(rows / unit))
