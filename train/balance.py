"""`parallel.split=auto`: the pipeline split that fits the recipe's own mixture and what the stage freezes."""

from collections.abc import Sequence
from dataclasses import replace

from data.encoding.encode import media_grid
from data.plan.plan import Cursor, Plan, RowPlan
from data.types import SampleIndex
from model.activations import RowSizes
from model.balance import balanced_split, stage_shares
from model.flops import Work
from parallel.config import ParallelConfig
from train.config import RunConfig

_SAMPLES = 4096  # enough for proportions; a window may hold many more


def settled_parallel(run: RunConfig, plan: Plan, indexes: Sequence[SampleIndex]) -> ParallelConfig:
    """The run's layout with `auto` replaced by numbers; equal on every rank, and asked again by a resumed run."""
    if run.parallel.split != "auto":
        return run.parallel
    if run.parallel.pipeline == 1:
        return replace(run.parallel, split=None)
    split = balanced_split(run.model, run.parallel, run.stage.trainable, mixture_work(plan, indexes))
    return replace(run.parallel, split=split)


def split_line(run: RunConfig, parallel: ParallelConfig, plan: Plan, indexes: Sequence[SampleIndex]) -> str:
    """The split and each pipeline stage's share of the FLOPs, for people."""
    assert isinstance(parallel.split, tuple)
    shares = stage_shares(run.model, parallel, run.stage.trainable, mixture_work(plan, indexes), parallel.split)
    said = ", ".join(f"{share:.1%}" for share in shares)
    return f"pipeline split: {list(parallel.split)} language layers; FLOPs of the pipeline stages: {said}"


def mixture_work(plan: Plan, indexes: Sequence[SampleIndex]) -> Work:
    """What the first steps of the plan take, from their lengths; no sample is read."""
    work, cursor, samples = Work(), Cursor(), 0
    while samples < _SAMPLES:
        step = plan.step(cursor)
        cursor = step.next_cursor
        for row in step.rows:
            samples += len(row.samples)
            work += row_sizes(plan, row, indexes).work
    return work


def row_sizes(plan: Plan, row: RowPlan, indexes: Sequence[SampleIndex]) -> RowSizes:
    """The lengths of a planned row, from the index alone. Pictures that are shrunk to fit count as they are stored."""
    image, video = plan.config.image, plan.config.video
    frames: list[int] = []
    for source_id, number in row.samples:
        for size in indexes[source_id].media_sizes(number):
            times, rows, columns = media_grid(size, image, video).patches
            frames += [rows * columns] * times
    return RowSizes(
        segments=tuple(plan.num_tokens(*sample) for sample in row.samples),
        frames=tuple(frames),
        targets=sum(int(indexes[source_id].columns["num_targets"][number]) for source_id, number in row.samples),
    )
