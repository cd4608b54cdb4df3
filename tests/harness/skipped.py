"""Steps with nothing to learn: what they leave untouched, and what a run says of them."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.config import IGNORE
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.types import PackedRow
from parallel.config import ParallelConfig
from parallel.watch import Watch
from parallel.world import model_parallel, pick_device
from tests.data.conftest import clip_bytes, make_samples, train_tokenizer
from tests.harness.layouts import MODEL, Stage, start
from tests.harness.rows import random_step, sized_row
from tests.harness.runs import STEPS, write_recipe
from train.checkpoint.commits import Commit, attempts, open_commit
from train.checkpoint.load import read_tensors
from train.config import CheckpointConfig
from train.resolve import from_yaml
from train.state import TrainState
from train.step import train_step
from train.trainer import Trainer

VOCABULARY = MODEL.language.vocab_size
KINDS = {"no supervised token": "stage2", "no picture in stage 1": "stage1"}
"""What a step lacks, and the training stage in which it then has nothing to learn."""


def empty_rows(kind: str) -> list[PackedRow]:
    """The rows of such a step."""
    generator = np.random.default_rng(6)
    if kind == "no picture in stage 1":
        return [sized_row(generator, VOCABULARY, tokens) for tokens in (9, 14, 6, 31)]
    rows = random_step(5, 4, VOCABULARY)
    return [replace(row, targets=np.full_like(row.targets, IGNORE)) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A step with nothing to learn after one with everything, on one rank."""

    changed: int
    """Weights, masters, moments and counts of updates with another bit."""
    looked_at: int
    wrong: list[str]
    """What the step reported otherwise than it should."""


def skip_a_step(parallel: ParallelConfig, kind: str, precision: str = "fp32") -> Skipped:
    """Run it on every rank."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        steps = [random_step(1, 4, VOCABULARY), empty_rows(kind)]
        made = start(parallel, KINDS[kind], groups, steps=steps, precision=precision)
        state = TrainState()
        train_step(made.parts, state)
        before = _bits(made)
        report = train_step(made.parts, state)
        after = _bits(made)
        made.optimizer.close()
    facts = {
        "says why": bool(report.skipped),
        "no loss": np.isnan(report.loss),
        "no norm": report.grad_norm == 0.0,
        "counted as a step": state.step == 2,
        "counted as skipped": state.skipped == 1,
        "samples counted": state.samples == sum(len(row.segment_lengths) for rows in steps for row in rows),
    }
    return Skipped(
        changed=sum(not torch.equal(before[name], after[name]) for name in before),
        looked_at=len(before),
        wrong=[fact for fact, holds in facts.items() if not holds],
    )


def _bits(made: Stage) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in made.built.module.named_parameters()}
    for fragment in made.optimizer.fragments():
        found |= {f"{fragment.param_name} {key}": value.clone() for key, value in fragment.tensors.items()}
    return found | {"updates": torch.tensor(made.optimizer.steps_taken)}


def write_text(folder: Path) -> Path:
    """A tokenizer and one indexed source of text alone."""
    train_tokenizer(folder / "tokenizer")
    samples = [sample for sample in make_samples(100, clip_bytes()) if sample.content["source"] == "text"]
    write_shards(folder / "mixed", "mixed", samples, samples_per_shard=12)
    build_index(folder / "mixed", load_tokenizer(folder / "tokenizer"))
    return folder


def train_on_text(parallel: ParallelConfig, folder: Path, recipe: str) -> None:
    """A run of stage 1 over text, saved after each step; run it on every rank."""
    run = from_yaml((folder / f"{recipe}.yaml").read_text())
    keep = CheckpointConfig(every_steps=1, keep=STEPS)
    run = replace(run, run_dir=str(folder / "run"), parallel=parallel, checkpoint=keep)
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        Trainer(run, groups, Watch(run.parallel, run.run_dir, ())).fit()  # not entered: it watches nothing


def text_recipe(folder: Path, data: Path) -> str:
    """Name of the recipe that `train_on_text` trains, written to `folder`."""
    return write_recipe(folder, data, "stage1", ParallelConfig(), 1).name


@dataclass(frozen=True, kw_only=True)
class SkippedRun:
    """What such a run left on disk."""

    changed: int
    """Tensors of weights and optimizer that differ between its first and its last checkpoint, and updates between."""
    tensors: int
    still: int
    """Checkpoints whose data cursor, or count of steps, is not beyond that of the one before."""
    unrecorded: int
    """Steps without a line in skipped.jsonl that names them and their samples, or with a loss in the metrics."""


def look_at_run(folder: Path) -> SkippedRun:
    """Of `train_on_text`."""
    commits = [open_commit(attempt.path) for attempt in attempts(folder / "run")][::-1]
    assert len(commits) == STEPS
    first, last = read_tensors(commits[0].path), read_tensors(commits[-1].path)
    changed = sum(not torch.equal(first.read(name), last.read(name)) for name in first.names())
    changed += commits[-1].state["steps_taken"] - commits[0].state["steps_taken"]
    still = sum(not _moved(one, two) for one, two in pairwise(commits))
    told = [json.loads(line) for line in (folder / "run" / "skipped.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    recorded = sum(
        line["step"] == told_of["step"] == number and line["loss"] is None and all(map(bool, told_of["rows"]))
        for number, (line, told_of) in enumerate(zip(lines, told, strict=False), start=1)
    )
    return SkippedRun(changed=changed, tensors=len(first.names()), still=still, unrecorded=STEPS - recorded)


def _moved(one: Commit, two: Commit) -> bool:
    before, after = ((commit.state["cursor"]["window"], commit.state["cursor"]["row"]) for commit in (one, two))
    return after > before and two.state["counters"]["step"] == one.state["counters"]["step"] + 1
