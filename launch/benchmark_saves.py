"""`python -m launch.benchmark_saves --folder DIR [--model qwen2vl_2b]`: by how much a save holds up training, written
beside it and waited for, as shares of a step's time on this host and its disk.

Rows are random. Start it with torchrun for more than one process; DIR should lie where runs do.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from launch.benchmark import prepared
from parallel.collectives import any_of
from parallel.groups import Groups
from parallel.world import distributed
from train.checkpoint.contents import Outcome
from train.checkpoint.entries import writer_of
from train.checkpoint.run import RunCheckpoints
from train.config import RunConfig
from train.resolve import compose
from train.state import TrainState
from train.step import train_step


def measure_saves(
    run: RunConfig, groups: Groups, tokens_per_row: int, rows: int, folder: Path, saves: int
) -> dict[str, float]:
    """Medians over `saves` saves of each kind, which take turns.

    Returns:
        `step_seconds`; `beside_over_step` and `waited_over_step`, the time a save holds up training over that of a
        step, if it is written beside training and if training waits for the seal; `steps_while_writing_over_step`,
        NaN where no step was; `bytes`, `write_seconds` and `bytes_per_second` of the saves written beside training.
    """
    built, parts = prepared(run, groups, tokens_per_row, rows)
    told: list[Outcome] = []
    checkpoints = RunCheckpoints(
        folder,
        dict(built.module.named_parameters()),
        built.boxes,
        parts.optimizer,
        writer=writer_of(groups),
        frozen=(),
        keep=1,
        commit_seconds=600.0,
        tell=told.append,
    )
    state = TrainState()
    quiet, meanwhile, beside, waited = [], [], [], []

    def step() -> None:
        train_step(parts, state)

    def save() -> None:
        checkpoints.save(state.step, {}, "")

    def save_and_wait() -> None:
        save()
        checkpoints.finish()

    for _ in range(2):
        step()
    for number in range(saves + 1):
        quiet += [_seconds(step) for _ in range(3)]
        before = len(told)
        beside.append(_seconds(save))
        while any_of(None, len(told) == before):  # the ranks have to take as many steps
            meanwhile.append(_seconds(step))
            checkpoints.poll()
        written = told[-1]
        waited.append(_seconds(save_and_wait))
        if number == 0:  # host memory is taken, and code is loaded, at the first
            quiet, meanwhile, beside, waited = [], [], [], []
    parts.optimizer.close()
    seconds = statistics.median(quiet)
    return {
        "step_seconds": seconds,
        "beside_over_step": statistics.median(beside) / seconds,
        "waited_over_step": statistics.median(waited) / seconds,
        "steps_while_writing_over_step": statistics.median(meanwhile or [math.nan]) / seconds,
        "bytes": written.nbytes,
        "write_seconds": written.write_seconds,
        "bytes_per_second": written.nbytes / written.write_seconds,
    }


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Print the figures as JSON; without CUDA it takes the tiny model, so that it always runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2vl_2b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--tokens-per-row", type=int, default=8192 if torch.cuda.is_available() else 600)
    parser.add_argument("--rows", type=int, default=2, help="microbatches of each replica")
    parser.add_argument("--saves", type=int, default=5, help="of each kind")
    parser.add_argument("--folder", type=Path, required=True, help="gets a folder of its own, which goes at the end")
    options, overrides = parser.parse_known_args()
    run = compose("quickstart_stage2", [f"model={options.model}", "precision=bf16", *overrides])
    with distributed(run.parallel, run.seed) as groups:
        options.folder.mkdir(parents=True, exist_ok=True)
        names = [tempfile.mkdtemp(dir=options.folder) if groups.rank == 0 else ""]
        torch.distributed.broadcast_object_list(names)
        folder = Path(names[0])
        figures = measure_saves(run, groups, options.tokens_per_row, options.rows, folder, options.saves)
        if groups.rank == 0:
            print(json.dumps(figures, indent=1))
            for path in sorted(folder.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            folder.rmdir()


if __name__ == "__main__":
    main()
