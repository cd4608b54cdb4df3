"""`python -m launch.benchmark [--model qwen2vl_2b] [--json FILE]`: tokens/s and MFU of a stage 2 step on this host, and
what each of `parallel.kernels` gains.

Rows are random but shaped like a mixture of pictures and text; nothing is read, so this times model, schedule and
optimizer, not data. Start it with torchrun for more than one process, with CUDA_DEVICE_MAX_CONNECTIONS=1 for a tensor
axis on GPUs. The gains need memory for two runs; `--pairs 0` leaves them out.
"""

import argparse
import gc
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import IGNORE
from data.encoding.positions import mrope_positions
from data.loading.rows import ReadStats
from data.plan.plan import Cursor, StepPlan
from data.types import PackedRow
from model.balance import balanced_split
from model.build import BuiltModel, build_model
from model.config import VisionConfig
from model.flops import row_work, step_flops
from model.init import fill_random
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.world import distributed, peak_flops
from train.batches import Announced, RowForm, announce
from train.config import RunConfig
from train.optimizer import build_optimizer
from train.resolve import compose
from train.state import TrainState
from train.step import StepParts, StepReport, train_step

GRID = (1, 36, 48)  # a picture of 504 x 672 pixels
TEXT = 160  # tokens that follow it


class RandomBatches:
    """The same rows again and again, through the real announcement."""

    waited = 0.0

    def __init__(self, row: PackedRow, num_rows: int, groups: Groups, form: RowForm) -> None:
        self._row = row
        self._num_rows = num_rows
        self._groups = groups
        self._form = form

    def next(self) -> tuple[StepPlan, Announced]:
        packed = [self._row] * self._num_rows if self._groups.is_reader else None
        plan = StepPlan(rows=(), next_cursor=Cursor())
        return plan, announce(packed, self._num_rows, self._groups, self._form)

    def stats(self) -> ReadStats:
        return ReadStats()


def random_row(vision: VisionConfig, vocab_size: int, tokens_per_row: int) -> PackedRow:
    """As many picture-and-text samples as fit `tokens_per_row`."""
    generator = np.random.default_rng(0)
    time_steps, height, width = GRID
    merge = vision.spatial_merge_size
    visual = time_steps * height * width // merge**2
    length = visual + TEXT
    count = max(1, tokens_per_row // length)
    tokens = generator.integers(0, vocab_size, count * length)
    targets = np.full(count * length, IGNORE)
    learned = (np.arange(count)[:, None] * length + np.arange(visual, length - 1)).ravel()
    targets[learned] = tokens[learned + 1]
    positions = mrope_positions(length, [(0, (time_steps, height // merge, width // merge))])
    return PackedRow(
        tokens=tokens,
        targets=targets,
        positions=np.tile(positions, count),
        segment_lengths=np.full(count, length),
        grids=np.tile(np.array(GRID), (count, 1)),
        visual_index=(np.arange(count)[:, None] * length + np.arange(visual)).ravel(),
        patches=generator.standard_normal((count * visual * merge**2, vision.patch_dim), dtype=np.float32),
        sample_ids=np.arange(count),
        source_ids=np.zeros(count, dtype=np.int64),
    )


def measure(run: RunConfig, groups: Groups, tokens_per_row: int, rows: int, steps: int) -> dict[str, Any]:
    """Train `steps` steps after two that warm up; medians on every rank."""
    _, parts = prepared(run, groups, tokens_per_row, rows)
    seconds, report = _timed_steps(parts, steps)
    parts.optimizer.close()
    return _figures(run, groups, seconds, report)


def kernel_gains(
    run: RunConfig, groups: Groups, tokens_per_row: int, rows: int, pairs: int
) -> dict[str, dict[str, float]]:
    """By switch of `parallel.kernels`: median seconds of a step with it and without it, and the median of how many
    times as long the step without it takes, over `pairs` pairs of steps that take turns in going first."""
    gains = {}
    for switch in _switches(run, groups):
        gc.collect()  # engines lie in cycles: those of the switch before would still be held
        sides = []
        for value in (True, False):
            kernels = replace(run.parallel.kernels, **{switch: value})
            side = replace(run, parallel=replace(run.parallel, kernels=kernels))
            sides.append(prepared(side, groups, tokens_per_row, rows)[1])
        fused, plain = _alternated(sides, pairs + 2)[2:].T  # the first two pairs warm up
        gains[switch] = {
            "fused_seconds": float(np.median(fused)),
            "plain_seconds": float(np.median(plain)),
            "plain_over_fused": float(np.median(plain / fused)),
        }
        while sides:
            sides.pop().optimizer.close()
    return gains


def _alternated(sides: list[StepParts], pairs: int) -> np.ndarray:
    """Seconds of each step, (pairs, 2)."""
    state, times = TrainState(), np.zeros((pairs, 2))
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 else (1, 0):
            times[pair, side] = _seconds(sides[side], state)[0]
    return times


def _switches(run: RunConfig, groups: Groups) -> list[str]:
    """Those that change anything here (parallel/config.py says which do not)."""
    switches = ["fused_norms", "fused_adamw"]
    if groups.device.type == "cuda" and run.precision == "bf16":
        switches.insert(0, "fused_attention")
    return switches + (["overlap_tensor"] if groups.tp_size > 1 else [])


def prepared(run: RunConfig, groups: Groups, tokens_per_row: int, rows: int) -> tuple[BuiltModel, StepParts]:
    """A run over random rows, ready for `train_step`."""
    assert run.model.vision is not None
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    row = random_row(run.model.vision, run.model.language.vocab_size, tokens_per_row)
    built = build_model(run.model, _settled(run, row), groups, dtype, run.stage.trainable)
    for name, parameter in built.module.named_parameters():
        fill_random(parameter, built.boxes[name], run.seed, run.init.std)
    optimizer = build_optimizer(run, built, groups)
    form = RowForm(
        dtype=dtype,
        patch_dim=run.model.vision.patch_dim,
        multiple=run.parallel.tensor if run.parallel.sequence_parallel else 1,
    )
    return built, StepParts(
        batches=RandomBatches(row, rows, groups, form),  # type: ignore[arg-type]
        schedule=Schedule(built.module.chunks, groups),
        optimizer=optimizer,
        groups=groups,
        stage=run.stage,
    )


def _settled(run: RunConfig, row: PackedRow) -> ParallelConfig:
    """The layout with a split that fits the rows that are timed, where the recipe says auto."""
    if run.parallel.split != "auto" or run.parallel.pipeline == 1:
        return replace(run.parallel, split=None) if run.parallel.split == "auto" else run.parallel
    grids = [(t, h, w) for t, h, w in row.grids.tolist()]
    work = row_work(row.segment_lengths.tolist(), grids, int((row.targets >= 0).sum()))
    return replace(run.parallel, split=balanced_split(run.model, run.parallel, run.stage.trainable, work))


def _timed_steps(parts: StepParts, steps: int) -> tuple[float, StepReport]:
    state = TrainState()
    timed = [_seconds(parts, state) for _ in range(steps + 2)]
    return statistics.median(seconds for seconds, _ in timed[2:]), timed[-1][1]


def _seconds(parts: StepParts, state: TrainState) -> tuple[float, StepReport]:
    started = time.perf_counter()
    report = train_step(parts, state)  # ends with numbers on the host, so the device is done
    return time.perf_counter() - started, report


def _figures(run: RunConfig, groups: Groups, seconds: float, report: StepReport) -> dict[str, Any]:
    flops = step_flops(run.model, run.stage.trainable, report.work) / seconds / groups.world_size
    peak = peak_flops(groups.device)
    cuda = groups.device.type == "cuda"
    return {
        "model": run.model.name,
        "stage": run.stage.name,
        "precision": run.precision,
        "processes": groups.world_size,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "work": asdict(report.work),
        "step_seconds": seconds,
        "tokens_per_second": report.work.tokens / seconds,
        "teraflops_per_process": flops / 1e12,
        "mfu": flops / peak if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "loss": report.loss,
    }


def main() -> None:
    """Print figures as JSON and gains as a table; without CUDA it takes the tiny model, so that it always runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2vl_2b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--tokens-per-row", type=int, default=8192 if torch.cuda.is_available() else 600)
    parser.add_argument("--rows", type=int, default=2, help="microbatches of each replica")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of steps for each switch of parallel.kernels")
    parser.add_argument("--json", type=Path)
    options, overrides = parser.parse_known_args()
    run = compose("quickstart_stage2", [f"model={options.model}", "precision=bf16", *overrides])
    run = replace(run, stage=replace(run.stage, steps=1000, tokens=None))
    with distributed(run.parallel, run.seed) as groups:
        sizes = (options.tokens_per_row, options.rows)
        figures = measure(run, groups, *sizes, options.steps)
        gains = kernel_gains(run, groups, *sizes, options.pairs) if options.pairs else {}
        if groups.rank == 0:
            print(json.dumps(figures, indent=1))
            print_gains(gains)
            if options.json:
                options.json.write_text(json.dumps(figures | {"kernels": gains}))


def print_gains(gains: dict[str, dict[str, float]]) -> None:
    """One line a switch."""
    if gains:
        print(f"{'parallel.kernels':<18} {'with':>10} {'without':>10} {'ratio':>7}")
    for switch, gain in gains.items():
        with_it, without = (f"{gain[key] * 1e3:.1f} ms" for key in ("fused_seconds", "plain_seconds"))
        print(f"{switch:<18} {with_it:>10} {without:>10} {gain['plain_over_fused']:>7.3f}")


if __name__ == "__main__":
    main()
