"""A stalled run with what it leaves, a step once more, and a slow rank: measured for tests and proofs."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.index.file import open_index
from launch.replay import replay
from model.vlm import ModelChunk
from parallel.config import ParallelConfig
from tests.harness.asked import fail_life
from tests.harness.faulty import STEP, Fault
from tests.harness.lives import Nursery, run_config
from tests.harness.reports import Run, wrong_in_file, wrong_in_report
from tests.prove.planting import replace_name
from train.checkpoint.load import find_commit
from train.ending import read_ending
from train.resolve import from_yaml

TIMEOUT = 24.0


@dataclass(frozen=True, kw_only=True)
class Stalled:
    """A run that did not go on."""

    seconds: float
    """From the fault to the end of the last process."""
    in_report: list[str]
    in_files: list[str]
    """What is wrong in the files of ranks."""
    verdict: str


def stalled_run(
    nursery: Nursery, folder: Path, data: Path, fault: Fault, parallel: ParallelConfig, size: int, plant: str | None
) -> list[Stalled]:
    """Twice: a run saved after each step whose rank stands still, and the same gone on with from before that, which
    stands still as well."""
    run = run_config(folder / "run", data, "stage2", parallel, steps=STEP + 2)
    run = replace(
        run,
        parallel=replace(parallel, timeout_seconds=TIMEOUT),
        checkpoint=replace(run.checkpoint, every_steps=STEP - 1),
    )
    dp_size = size // parallel.tensor // parallel.pipeline
    fault = replace(fault, microbatches=run.data.rows_per_step // dp_size)
    where, found = Run(data=run.data, parallel=parallel, processes=size), []
    # The second start goes on after the save, so the step comes sooner.
    for number, ahead in enumerate((0, STEP - 1)):
        early = replace(fault, microbatch=fault.microbatch - ahead * fault.microbatches)
        ended = fail_life(nursery, replace(run, resume=number > 0), size, early, plant=plant)
        ending = read_ending(run.run_dir)
        reports = sorted(Path(run.run_dir, "faults").glob("*.txt"), key=lambda path: path.stat().st_mtime)
        files = [reports[-1].with_suffix("") / f"rank_{rank:05d}.txt" for rank in range(size)] if reports else []
        wrong = [f"{path.name} is missing" for path in files if not path.exists()]
        for rank, path in enumerate(files):
            wrong += wrong_in_file(where, fault, rank, path.read_text()) if path.exists() else []
        found.append(
            Stalled(
                seconds=ended.seconds,
                in_report=wrong_in_report(where, fault, ended),
                in_files=wrong if files else ["there are none"],
                verdict=ending.verdict if ending is not None else "none",
            )
        )
    return found


def replayed(run_dir: str, steps: tuple[int, ...]) -> dict[str, Any]:
    """The largest relative differences of loss and norm from the record, over these steps; steps of other samples, and
    samples with another number of targets than the index has; sums of samples' losses that are not the step's."""
    found = {"loss": 0.0, "norm": 0.0, "samples": 0, "sums": 0.0}
    (source,) = from_yaml(find_commit(run_dir).recipe).data.sources
    targets = open_index(source.path).columns["num_targets"]
    for step in steps:
        data = replay(Path(run_dir), step, tell=lambda _: None).data
        was, now = data["recorded"], data["replayed"]
        found["loss"] = max(found["loss"], abs(now["loss"] / was["loss"] - 1))
        found["norm"] = max(found["norm"], abs(now["grad_norm"] / was["grad_norm"] - 1))
        found["samples"] += not data["same_samples"]
        found["samples"] += sum(
            each["targets"] != targets[int(each["sample"].split(":")[1])] for each in data["samples"]
        )
        learnt = [(each["targets"], each["loss"]) for each in data["samples"] if each["targets"]]
        mean = sum(count * loss for count, loss in learnt) / was["targets"]
        found["sums"] = max(found["sums"], abs(mean / was["loss"] - 1))
    return found


def slow_forward(rank: int, slow_rank: int, seconds: float) -> None:
    """Have one rank take longer over each microbatch."""

    def make(forward: Callable[..., Any]) -> Callable[..., Any]:
        def planted(*arguments: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return forward(*arguments, **named)

        return planted

    if rank == slow_rank:
        replace_name(ModelChunk, "forward", make)


def slow_run(nursery: Nursery, folder: Path, data: Path, plant: str | None = None) -> list[tuple[list[int], str]]:
    """(ranks, work) that a run on DP2 names, whose rank 1 takes a quarter of a second longer over each forward."""
    run = run_config(folder, data, "stage2", ParallelConfig(), steps=10)
    run = replace(
        run,
        parallel=replace(run.parallel, timeout_seconds=20.0),  # a sign of life each second
        checkpoint=replace(run.checkpoint, every_steps=None),
        log=replace(run.log, every_steps=1),
    )
    life = nursery.live(run, 2, before=slow_forward, given=(1, 0.25), plant=plant)
    assert life.ended_well, life.said
    lines = [json.loads(line) for line in (folder / "stragglers.jsonl").read_text().splitlines()]
    said = [(line["ranks"], line["work"]) for line in lines]
    assert all(f"held the others up in {work}" in life.said for _, work in said)
    return said
