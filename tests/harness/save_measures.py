"""What a save holds, what it leaves out, and what it costs training."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from safetensors import safe_open
from torch import Tensor

from launch.benchmark_saves import measure_saves
from model.hf_weights import canonical_shape, hf_pieces
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import STAGES
from tests.harness.lives import Nursery, run_config
from tests.harness.run_faults import well
from tests.prove.planting import replace_name
from tests.train.toy_layouts import Layout, ToyRank, differing, one
from train.checkpoint import commits, disk
from train.checkpoint.contents import Outcome
from train.checkpoint.entries import ALONE, Writer
from train.checkpoint.load import find_commit, load_optimizer, load_weights
from train.checkpoint.run import RunCheckpoints
from train.config import RunConfig
from train.errors import CheckpointError
from train.resolve import compose

STAGE = "stage3"  # of which one part is frozen
STEPS = 4


def stall_ratios(folder: Path) -> dict[str, float]:
    """`measure_saves` of the tiny model in this world, DP."""
    run = compose("quickstart_stage2", ["model=tiny", "precision=fp32"])
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        return measure_saves(replace(run, parallel=ParallelConfig()), groups, 400, 2, folder, saves=5)


def written_later(folder: Path) -> tuple[int, int]:
    """(wrong, all) tensors of a save whose writing begins after training has changed every one of them."""
    toy = one(frozen=()).fill()
    made = RunCheckpoints(
        folder,
        toy.parameters,
        toy.boxes,  # type: ignore[arg-type]
        toy,  # type: ignore[arg-type]
        writer=ALONE,
        frozen=(),
        keep=1,
        commit_seconds=60.0,
    )
    go_on = threading.Event()
    mend = replace_name(disk, "make_folder", lambda real: lambda path: (go_on.wait(30), real(path)))
    try:
        made.save(1, {}, "")
        for tensor in _tensors(toy):
            tensor.fill_(3.0)
        go_on.set()
        made.finish()
    finally:
        mend()
    return unlike_at_the_call(folder)


def _tensors(toy: ToyRank) -> list[Tensor]:
    return [*toy.parameters.values(), *(tensor for share in toy.held for tensor in share.tensors.values())]


def unlike_at_the_call(folder: Path) -> tuple[int, int]:
    """(wrong, all) tensors of the newest commit, which was made by toys as `fill` leaves them."""
    loaded = one(frozen=())
    commit = find_commit(folder, tell=lambda _: None)
    load_weights(commit, loaded.parameters, loaded.boxes)  # type: ignore[arg-type]
    load_optimizer(commit, loaded.boxes, loaded)  # type: ignore[arg-type]
    return len(differing(loaded)), len(ToyRank.pairs(loaded))


SLOW_STEPS = (1, 4)
"""Whose saves rank 1 writes slowly."""
_SAVE_SECONDS, _BLOCK_SECONDS = 20.0, 1.0
"""That a save may take, and a slow disk takes for a block, of which there are more than it has seconds."""


def saved_after_slow_ones(folder: Path) -> tuple[int, int]:
    """In a world of two: (of the two saves that follow one that is slow and was given up, how many are not committed;
    whether one is not that follows such a save when the run has to end)."""
    rank, told, left = dist.get_rank(), list[Outcome](), [math.inf]
    toy = ToyRank(Layout(dp=2), rank, frozen=()).fill()
    made = RunCheckpoints(
        folder,
        toy.parameters,
        toy.boxes,  # type: ignore[arg-type]
        toy,  # type: ignore[arg-type]
        writer=Writer(tp_rank=0, dp_rank=rank, dp_size=2),
        frozen=(),
        keep=9,
        commit_seconds=_SAVE_SECONDS,
        tell=told.append,
        seconds_left=lambda: left[0],
    )
    begun = threading.Event()

    def write(real: Callable[..., None]) -> Callable[..., None]:
        def slowly(descriptor: int, block: disk.Bytes) -> None:
            real(descriptor, block)
            if commits.step_of(Path(f"/proc/self/fd/{descriptor}").readlink().parent.name) in SLOW_STEPS:
                begun.set()
                time.sleep(_BLOCK_SECONDS)

        return slowly

    mend = replace_name(disk, "write_block", write) if rank == 1 else lambda: None
    try:
        for step in (1, 2, 3, 4):
            made.save(step, {}, "")
            if step in SLOW_STEPS:
                assert rank == 0 or begun.wait(60)
                begun.clear()
                dist.barrier()
                left[0] = 0.0
            made.settle()
            left[0] = math.inf
        left[0] = 0.0
        made.save(5, {}, "", last=True)
        for tensor in _tensors(toy):
            tensor.fill_(3.0)
        with contextlib.suppress(CheckpointError):
            made.finish()
        dist.barrier()
    finally:
        mend()
    sealed = {outcome.step for outcome in told if outcome.fault is None}
    assert not sealed.intersection(SLOW_STEPS), "what was slow was not given up"
    return len({2, 3} - sealed), len({5} - sealed)


def frozen_run(nursery: Nursery, folder: Path, data: Path, plant: str | None) -> RunConfig:
    """A run of DP2 with a frozen part and a commit after each step, of which one is kept."""
    run = run_config(folder / "frozen", data, STAGE, ParallelConfig(), steps=STEPS)
    run = replace(run, checkpoint=replace(run.checkpoint, keep=1))
    well(nursery.live(run, 2, plant=plant))
    return run


def frozen_again(run_dir: Path) -> tuple[int, int]:
    """(files of frozen parts that the newest commit has itself, what is wrong with it or with what it refers to)."""
    newest = commits.attempts(run_dir)[0].path
    entries = commits.listed_files(newest)
    frozen = [name for name in entries if name.split(".")[0] in ("vision", "merger", "language")]
    frozen = [name for name in frozen if name.split(".")[0] not in STAGES[STAGE]]
    assert frozen, "no file of a frozen part is listed"
    own = sum(entries[name].folder == newest.name for name in frozen)
    return own, len(commits.problems(newest)) + (len(list(run_dir.glob("checkpoints/step_*/COMMIT"))) - 1)


def missing_in_commit(run: RunConfig) -> list[str]:
    """What a commit lacks of what it has to hold, read with json, yaml and safetensors alone."""
    commit = commits.attempts(run.run_dir)[0].path
    listed = json.loads((commit / commits.FILES).read_text())["files"]
    folders = {name: commit.parent / entry["folder"] / name for name, entry in listed.items()}
    held: dict[str, int] = {}
    for name, path in folders.items():
        if name.endswith(commits.TENSORS):
            with safe_open(path, framework="pt") as boxes:
                for key in boxes.keys():  # noqa: SIM118
                    whole = key.rpartition("@")[0]
                    held[whole] = held.get(whole, 0) + boxes.get_tensor(key).numel()
    wanted = {name: torch.Size(canonical_shape(pieces)).numel() for name, pieces in hf_pieces(run.model).items()}
    trained = {name: size for name, size in wanted.items() if name.split(".")[0] in STAGES[STAGE]}
    for kind in ("master", "exp_avg", "exp_avg_sq"):
        wanted |= {f"optimizer.{kind}.{name}": size for name, size in trained.items()}
    missing = [name for name, size in wanted.items() if held.get(name) != size]
    state = json.loads(folders["state.json"].read_text())
    due = ("counters", "cursor", "plan", "seed", "world_size", "steps_taken", "environment", "chain", "stage", "loss")
    due += ("segments", "used")
    missing += [name for name in due if name not in state]
    missing += ["step"] if state["counters"]["step"] != STEPS else []
    recipe = yaml.safe_load(folders["recipe.yaml"].read_text())
    missing += ["recipe"] if recipe["stage"]["name"] != STAGE else []
    files = ("quarantine.jsonl", *(f"random.{rank:05d}.state" for rank in range(2)))
    return missing + [name for name in files if name not in folders]
