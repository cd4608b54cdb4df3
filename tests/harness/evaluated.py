"""Runs with held-out sources: what is measured, and whether training is left as it was."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import SourceConfig
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.index.file import open_index
from data.plan.plan import Plan
from model.build import build_model
from model.init import fill_random
from parallel.config import ParallelConfig
from parallel.place import Board
from parallel.watch import Watch
from parallel.world import model_parallel, pick_device
from tests.data.conftest import clip_bytes, make_samples
from tests.harness.lives import run_config
from tests.prove.planting import replace_name
from train.batches import RowForm
from train.config import EvaluateConfig, RunConfig
from train.evaluate import Evaluated, Evaluation
from train.held_out import held_out
from train.trainer import Trainer

HELD_OUT = {"pictures": 9, "words": 25}
"""Samples of each held-out source; of the larger one MOST are looked at."""
MOST = 13


def write_held_out(folder: Path, data: Path) -> tuple[SourceConfig, ...]:
    """Two indexed sources under `folder`: pictures and the like, and text."""
    tokenizer, found = load_tokenizer(data / "tokenizer"), []
    for name, count in HELD_OUT.items():
        samples = make_samples(5 * count, clip_bytes())
        kept = [each for each in samples if (each.content["source"] == "text") == (name == "words")][:count]
        write_shards(folder / name, name, kept, samples_per_shard=7)
        build_index(folder / name, tokenizer)
        found.append(SourceConfig(name=name, path=str(folder / name)))
    return tuple(found)


def evaluated_run(
    run_dir: Path, data: Path, held: tuple[SourceConfig, ...], parallel: ParallelConfig, steps: int = 5, **evaluate: Any
) -> RunConfig:
    """Stage 2 of the tiny model, evaluated after each second step and at the end."""
    run = run_config(run_dir, data, "stage2", parallel, steps=steps)
    wanted = {"every_steps": 2, "sources": held, "samples": MOST} | evaluate
    return replace(run, evaluate=EvaluateConfig(**wanted), checkpoint=replace(run.checkpoint, keep=99))


def train_here(run: RunConfig, before: Callable[[], object] | None = None) -> tuple[int, ...]:
    """Train; run it on every rank. Returns what the generators of random numbers would draw next."""
    mend = before() if before is not None else None
    try:
        with model_parallel(run.parallel, pick_device(), seed=run.seed) as groups:
            Trainer(run, groups, Watch(run.parallel, run.run_dir, ())).fit()  # not entered: it watches nothing
    finally:
        if callable(mend):
            mend()
    return random.getrandbits(32), int(np.random.randint(2**31)), int(torch.randint(2**31, ()))


def drawing() -> Callable[[], None]:
    """Have an evaluation draw random numbers, as one with sampling or dropout would."""

    def make(step: Any) -> Any:
        def planted(*arguments: Any) -> Any:
            random.random(), np.random.random(), torch.rand(3)
            return step(*arguments)

        return planted

    return replace_name(Evaluation, "_step", make)


def held_out_losses(run: RunConfig) -> Evaluated | None:
    """Held-out losses of weights that are drawn by name, on this layout; run it on every rank."""
    with model_parallel(run.parallel, pick_device(), seed=0) as groups:
        model = build_model(run.model, run.parallel, groups, torch.float32, run.stage.trainable)
        for name, parameter in model.module.named_parameters():
            fill_random(parameter, model.boxes[name], 7, 0.05)
        assert run.model.vision is not None
        multiple = run.parallel.tensor if run.parallel.sequence_parallel else 1
        form = RowForm(dtype=torch.float32, patch_dim=run.model.vision.patch_dim, multiple=multiple)
        return Evaluation(run, groups, model.module.chunks, Board(), form).losses()


def expected_targets(run: RunConfig) -> dict[str, int]:
    """Supervised tokens of the samples that are looked at, from the indexes alone."""
    data, _ = held_out(run.data, run.evaluate)
    drawn = Plan(data, [open_index(source.path) for source in data.sources]).window_samples(0)
    assert len({tuple(pair) for pair in drawn.tolist()}) == len(drawn), "a sample is drawn twice"
    found = {}
    for number, source in enumerate(data.sources):
        index = open_index(source.path)
        chosen = drawn[drawn[:, 0] == number, 1]
        assert len(chosen) == min(run.evaluate.samples, len(index))
        found[source.name] = int(np.asarray(index.columns["num_targets"])[chosen].sum())
    return found


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of evaluations.jsonl."""
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
