"""`python -m launch.benchmark [--model qwen2vl_2b] [--json FILE]`: tokens/s and MFU of a stage 2 step on this host.

Rows are random but shaped like a mixture of pictures and text; nothing is read, so this times model, schedule and
optimizer, not data. Start it with torchrun for more than one process.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import IGNORE
from data.plan import Cursor, StepPlan
from data.positions import mrope_positions
from data.types import PackedRow
from model.balance import balanced_split
from model.build import build_model
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

    def __init__(self, row: PackedRow, num_rows: int, groups: Groups, form: RowForm) -> None:
        self._row = row
        self._num_rows = num_rows
        self._groups = groups
        self._form = form

    def next(self) -> tuple[StepPlan, Announced]:
        packed = [self._row] * self._num_rows if self._groups.is_reader else None
        plan = StepPlan(rows=(), next_cursor=Cursor())
        return plan, announce(packed, self._num_rows, self._groups, self._form)


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


def measure(run: RunConfig, tokens_per_row: int, rows: int, steps: int) -> dict[str, Any]:
    """Train `steps` steps after two that warm up; medians on every rank."""
    assert run.model.vision is not None
    with distributed(run.parallel, run.seed) as groups:
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
        parts = StepParts(
            batches=RandomBatches(row, rows, groups, form),  # type: ignore[arg-type]
            schedule=Schedule(built.module.chunks, groups),
            optimizer=optimizer,
            groups=groups,
            stage=run.stage,
        )
        seconds, report = _timed_steps(parts, steps)
        return _figures(run, groups, seconds, report)


def _settled(run: RunConfig, row: PackedRow) -> ParallelConfig:
    """The layout with a split that fits the rows that are timed, where the recipe says auto."""
    if run.parallel.split != "auto" or run.parallel.pipeline == 1:
        return replace(run.parallel, split=None) if run.parallel.split == "auto" else run.parallel
    work = row_work(row.segment_lengths.tolist(), [(t, h, w) for t, h, w in row.grids.tolist()])
    return replace(run.parallel, split=balanced_split(run.model, run.parallel, run.stage.trainable, work))


def _timed_steps(parts: StepParts, steps: int) -> tuple[float, StepReport]:
    state, times = TrainState(), []
    for _ in range(steps + 2):
        started = time.perf_counter()
        report = train_step(parts, state)  # ends with numbers on the host, so the device is done
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]), report


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
    """Print the figures as JSON; a host without CUDA times the tiny model, so that the command always runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2vl_2b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--tokens-per-row", type=int, default=8192 if torch.cuda.is_available() else 600)
    parser.add_argument("--rows", type=int, default=2, help="microbatches of each replica")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options, overrides = parser.parse_known_args()
    run = compose("quickstart_stage2", [f"model={options.model}", "precision=bf16", *overrides])
    stage = replace(run.stage, steps=1000, tokens=None)
    figures = measure(replace(run, stage=stage), options.tokens_per_row, options.rows, options.steps)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
