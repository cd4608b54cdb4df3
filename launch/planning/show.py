"""Plans as tables for people, and as data for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launch.planning.memory import RankMemory
from launch.planning.stage import StagePlan
from launch.reports import table
from parallel.config import ParallelConfig

_PARTS = ("weights", "gradients", "optimizer", "rows", "activations", "in_flight", "working", "buffers")


def layout_said(parallel: ParallelConfig) -> str:
    """As overrides of a recipe that give this layout."""
    said = [f"parallel.tensor={parallel.tensor}", f"parallel.pipeline={parallel.pipeline}"]
    if parallel.chunks > 1:
        said.append(f"parallel.chunks={parallel.chunks}")
    said.append(f"parallel.sequence_parallel={str(parallel.sequence_parallel).lower()}")
    if parallel.pipeline > 1:
        said.append("parallel.split=auto")
    again = parallel.recompute
    said += [f"parallel.recompute.vision={again.vision}", f"parallel.recompute.language={again.language}"]
    return " ".join(said)


def plan_lines(plan: StagePlan, price: float | None) -> list[str]:
    """Layout, memory, pipeline, messages, time and cost."""
    parallel, time, machine = plan.run.parallel, plan.time, plan.machine
    lines = [
        f"{plan.gpus} {machine.gpu.name} as tensor {parallel.tensor} x pipeline {parallel.pipeline} x data "
        f"{plan.data_size}; {plan.run.data.rows_per_step} rows a step; {plan.rows_said}",
        "GB of a rank, at most over these rows; `full` if every row filled the recipe's budgets",
        *_memory_lines(plan),
    ]
    if parallel.pipeline > 1:
        split = ", ".join(map(str, parallel.split)) if isinstance(parallel.split, tuple) else "even"
        lines.append(f"pipeline: {split} layers; {time.timeline.bubble:.1%} of the time in the bubble (1F1B simulated)")
    traffic = time.traffic
    lines.append(
        f"messages of a rank and step, GB: tensor {traffic.tensor / 1e9:.1f}, pipeline {traffic.pipeline / 1e9:.2f}, "
        f"data {traffic.data / 1e9:.2f} ({time.reduction:.2f} s)"
    )
    lines.append(
        f"step {time.seconds:.2f} s of {plan.work.tokens:,} tokens and {plan.work.patches:,} patches: "
        f"{plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%} (passes at {machine.efficiency:.0%} of the data "
        f"sheet's {machine.gpu.flops / 1e12:.0f} TFLOP/s)"
    )
    return [*lines, f"the stage: {_length(plan)} in {plan.seconds / 86400:.1f} days, {_cost(plan, price)}"]


def _memory_lines(plan: StagePlan) -> list[str]:
    head = ["pipeline stage", *(part.replace("_", " ") for part in _PARTS), "most", "full", "room"]
    rows = [
        [str(stage), *(_gb(getattr(drawn, part)) for part in _PARTS), *map(_gb, (drawn.most, full.most))]
        for stage, (drawn, full) in enumerate(zip(plan.drawn, plan.fullest, strict=True))
    ]
    return table([head, *([*row, _gb(plan.machine.room)] for row in rows)])


def ranking_lines(plans: Sequence[StagePlan], price: float | None) -> list[str]:
    """One line a layout; the fastest one's overrides below."""
    head = ["tensor", "pipeline", "chunks", "data", "recomputed", "GB full", "bubble", "s a step", "tokens/s", "MFU"]
    lines = [[*head, "days", "GPU hours", *(["cost"] if price else [])]]
    for plan in plans:
        parallel, again = plan.run.parallel, plan.run.parallel.recompute
        row = [str(size) for size in (parallel.tensor, parallel.pipeline, parallel.chunks, plan.data_size)]
        row += [f"vision {again.vision}, language {again.language}", _gb(plan.most), f"{plan.time.timeline.bubble:.0%}"]
        row += [f"{plan.time.seconds:.2f}", f"{plan.tokens_per_second:,.0f}", f"{plan.mfu:.1%}"]
        row += [f"{plan.seconds / 86400:.1f}", f"{plan.gpu_hours:,.0f}"]
        lines.append([*row, *([f"{plan.gpu_hours * price:,.0f}"] if price else [])])
    return [*table(lines), f"the first: {layout_said(plans[0].run.parallel)}"]


def plan_data(plan: StagePlan, price: float | None) -> dict[str, Any]:
    """What JSON can hold; bytes and seconds."""
    parallel = plan.run.parallel
    return {
        "gpus": plan.gpus,
        "gpu": plan.machine.gpu.name,
        "parallel": asdict(parallel),
        "data": plan.data_size,
        "rows": plan.rows_said,
        "fits": plan.fits,
        "room": plan.machine.room,
        "memory": [_memory_data(memory) for memory in plan.drawn],
        "memory_full_rows": [_memory_data(memory) for memory in plan.fullest],
        "bubble": plan.time.timeline.bubble,
        "traffic": asdict(plan.time.traffic),
        "step_seconds": plan.time.seconds,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "days": plan.seconds / 86400,
        "gpu_hours": plan.gpu_hours,
        "cost": plan.gpu_hours * price if price else None,
    }


def _memory_data(memory: RankMemory) -> dict[str, int]:
    return {**{part: getattr(memory, part) for part in _PARTS}, "most": memory.most}


def _length(plan: StagePlan) -> str:
    stage = plan.run.stage
    return f"{stage.tokens:,} tokens" if stage.tokens is not None else f"{stage.steps:,} steps"


def _cost(plan: StagePlan, price: float | None) -> str:
    said = f"{plan.gpu_hours:,.0f} GPU hours"
    return (
        f"{said}, {plan.gpu_hours * price:,.0f} at {price:g} an hour"
        if price
        else f"{said} (--price says what they cost)"
    )


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f}" if nbytes >= 1e8 else f"{nbytes / 1e9:.2f}"
