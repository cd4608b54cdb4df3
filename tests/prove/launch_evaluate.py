"""A run that is evaluated (item 6): the same losses on every layout, and nothing of training that notices."""

import sys
from dataclasses import replace
from pathlib import Path

from data.config import SourceConfig
from parallel.config import ParallelConfig
from tests.harness.evaluated import (
    drawing,
    evaluated_run,
    evaluations,
    expected_targets,
    held_out_losses,
    train_here,
    write_held_out,
)
from tests.harness.runs import compare_runs
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context
from train.config import EvaluateConfig, RunConfig

MEASURED = LAYOUTS | {"interleaved PP2": (2, ParallelConfig(pipeline=2, chunks=2))}
TRAINED = ("DP2", "PP2", "DP2xTP2+SP")
HANGS = (sys.executable, "-c", "import time; time.sleep(600)")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"evaluate/losses/{layout}": _measured(layout) for layout in MEASURED}
    found |= {f"evaluate/undisturbed/{layout}": _undisturbed(layout) for layout in TRAINED}
    return found | {"evaluate/beside": _beside()}


def _held(context: Context) -> tuple[SourceConfig, ...]:
    held: tuple[SourceConfig, ...] = context.keep("held out", lambda: write_held_out(context.data, context.data))
    return held


def _run(context: Context, name: str, parallel: ParallelConfig, **evaluate: object) -> RunConfig:
    folder = context.scratch / f"{name}_{context.plant}"
    return evaluated_run(folder, context.data, _held(context), parallel, **evaluate)  # type: ignore[arg-type]


def _measured(layout: str) -> Case:
    names = (
        f"{layout}: held-out losses against one process",
        f"{layout}: supervised tokens other than the indexes have",
        f"{layout}: ranks that found something else",
    )

    def run(context: Context) -> list[Cell]:
        size, parallel = MEASURED[layout]
        wanted = _run(context, "measured", parallel)
        # The reference is measured without the plant, in a world of its own.
        (alone,) = context.worlds.run(1, held_out_losses, run=replace(wanted, parallel=ParallelConfig()))
        found = context.run(size, held_out_losses, run=wanted)
        apart = max(abs(found[0].losses[name] / loss - 1) for name, loss in alone.losses.items())
        due = expected_targets(wanted)
        other = sum(abs(found[0].targets[name] - count) for name, count in due.items())
        unlike = sum(each.losses != found[0].losses or each.targets != found[0].targets for each in found)
        return [
            Cell(name=names[0], measured=apart, limit=1e-5, unit="relative"),
            Cell(name=names[1], measured=other, limit=0, unit="tokens"),
            Cell(name=names[2], measured=unlike, limit=0, unit="ranks"),
        ]

    return Case(item=6, names=names, run=run)


def _undisturbed(layout: str) -> Case:
    what = ("tensors of another bit", "steps of other samples, loss or norm", "generators that draw something else")
    names = tuple(f"{layout}, with and without evaluation: {each}" for each in (*what, "evaluations missing"))

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        looked = _run(context, f"looked_{layout}", parallel)
        alone = replace(looked, run_dir=f"{looked.run_dir}_alone", evaluate=EvaluateConfig())
        drawn = context.run(size, train_here, run=looked, before=drawing)
        undisturbed = context.worlds.run(size, train_here, run=alone)
        found = compare_runs(Path(looked.run_dir), Path(alone.run_dir))
        steps = [line["step"] for line in evaluations(Path(looked.run_dir))]
        values = (
            found.weights + found.state,
            found.rows + found.curves,
            sum(one != other for one, other in zip(drawn, undisturbed, strict=True)),
            abs(len(steps) - 3),
        )
        units = ("tensors", "steps", "ranks", "evaluations")
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, value, unit in zip(names, values, units, strict=True)
        ]

    return Case(item=6, names=names, run=run)


def _beside() -> Case:
    names = (
        "DP2, a command that hangs: tensors of another bit, and steps of other samples, loss or norm",
        "DP2, a command that hangs: faults that are not told",
    )

    def run(context: Context) -> list[Cell]:
        hung = _run(context, "hung", ParallelConfig(), command=HANGS, wait_seconds=0.0)
        alone = replace(hung, run_dir=f"{hung.run_dir}_alone", evaluate=EvaluateConfig())
        context.run(2, train_here, run=hung)
        context.worlds.run(2, train_here, run=alone)
        found = compare_runs(Path(hung.run_dir), Path(alone.run_dir))
        told = [line["fault"] for line in evaluations(Path(hung.run_dir)) if line.get("fault")]
        unlike = found.weights + found.state + found.rows + found.curves
        return [
            Cell(name=names[0], measured=unlike, limit=0, unit="tensors and steps"),
            Cell(name=names[1], measured=not any("with the run" in fault for fault in told), limit=0, unit="runs"),
        ]

    return Case(item=6, names=names, run=run)
