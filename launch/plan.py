"""What a run's layout comes to, without a GPU: which rank holds what, and how busy each pipeline stage is."""

from collections.abc import Iterator
from dataclasses import replace

from model.shards import report_lines, shard_report
from train.balance import settled_parallel, split_line
from train.config import RunConfig
from train.ready import open_data


def plan_lines(run: RunConfig) -> Iterator[str]:
    """For people. Raises ValueError if the model cannot have this layout."""
    parallel = run.parallel
    yield run.model.name
    if parallel.split == "auto" and parallel.pipeline > 1:
        try:
            _, indexes, plan = open_data(run)
            parallel = settled_parallel(run, plan, indexes)
            yield split_line(run, parallel, plan, indexes)
        except (ValueError, OSError) as fault:
            parallel = replace(parallel, split=None)
            yield f"parallel.split=auto follows from the recipe's data, shown is an even split: {fault}"
    parallel = replace(parallel, split=None) if parallel.split == "auto" else parallel
    yield from report_lines(shard_report(run.model, parallel), parallel)
