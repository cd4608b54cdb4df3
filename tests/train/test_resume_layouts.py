"""Stop and go on with the real model, schedule and ZeRO-1: the same bits on one layout, the same state on another."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.build import BuiltModel, build_model
from model.hf_weights import canonical_shape, hf_pieces
from parallel.config import ParallelConfig
from parallel.groups import Groups
from parallel.schedule import Schedule
from parallel.world import model_parallel, pick_device
from parallel.zero import ZeroOptimizer
from tests.harness.commits import save_commit
from tests.harness.layouts import MODEL, STAGES, GivenBatches, _fill
from tests.harness.rows import PATCH_DIM, random_step
from tests.prove.context import Worlds
from train.batches import RowForm
from train.checkpoint.entries import writer_of
from train.checkpoint.load import find_commit, load_optimizer, load_weights, read_tensors
from train.config import OptimizerConfig, StageConfig
from train.optimizer import build_optimizer
from train.state import TrainState
from train.step import StepParts, train_step

LAYOUTS = {
    "dp2": ParallelConfig(),
    "tp2": ParallelConfig(tensor=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline=2),
}


@dataclass
class Run:
    built: BuiltModel
    optimizer: ZeroOptimizer
    parts: StepParts
    groups: Groups

    def train(self, steps: int) -> None:
        state = TrainState()
        for _ in range(steps):
            train_step(self.parts, state)

    def save(self, folder: Path, step: int) -> Path:
        parameters = dict(self.built.module.named_parameters())
        return save_commit(
            folder, step, parameters, self.built.boxes, self.optimizer, {}, "", writer=writer_of(self.groups), keep=9
        )

    def load(self, where: Path) -> None:
        commit = find_commit(where)
        load_weights(commit, dict(self.built.module.named_parameters()), self.built.boxes)
        load_optimizer(commit, self.built.boxes, self.optimizer)


def start(parallel: ParallelConfig, stage: str, precision: str, groups: Groups, first_step: int) -> Run:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    built = build_model(MODEL, parallel, groups, dtype, STAGES[stage])
    for name, parameter in built.module.named_parameters():
        _fill(parameter, built.boxes[name], std=0.05)
    run = SimpleNamespace(
        stage=StageConfig(
            name=stage,
            trainable=STAGES[stage],
            learning_rates=dict.fromkeys(STAGES[stage], 1e-3),
            steps=4,
            warmup=0.0,
            schedule="constant",
        ),
        optimizer=OptimizerConfig(),
        parallel=replace(parallel, reduce_bucket_elements=100_000),
        precision=precision,
    )
    optimizer = build_optimizer(run, built, groups)  # type: ignore[arg-type]
    optimizer.masters_from_weights()
    form = RowForm(dtype=dtype, patch_dim=PATCH_DIM, multiple=parallel.tensor)
    steps = [random_step(7 + step, 4, MODEL.language.vocab_size) for step in range(first_step, 4)]
    parts = StepParts(
        batches=GivenBatches(steps, groups, form),  # type: ignore[arg-type]
        schedule=Schedule(built.module.chunks, groups),
        optimizer=optimizer,
        groups=groups,
        stage=run.stage,
    )
    return Run(built=built, optimizer=optimizer, parts=parts, groups=groups)


def stop_and_go_on(layout: str, stage: str, precision: str, folder: Path) -> None:
    """On every rank: four steps at a stretch, then two, a commit, a new process's worth of objects, and two more."""
    parallel = LAYOUTS[layout]
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        straight = start(parallel, stage, precision, groups, 0)
        straight.train(2)
        stopped = straight.save(folder / "stopped", 2)
        straight.train(2)
        straight.save(folder / "straight", 4)
        straight.optimizer.close()
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        resumed = start(parallel, stage, precision, groups, 2)
        with torch.no_grad():
            for parameter in resumed.built.module.parameters():
                parameter.zero_()  # whatever is not loaded shows
        resumed.load(stopped)
        assert resumed.optimizer.steps_taken == 2
        resumed.train(2)
        resumed.save(folder / "resumed", 4)
        resumed.optimizer.close()


def move(layout: str, stage: str, precision: str, folder: Path) -> None:
    """On every rank: load what another layout wrote and write it again."""
    parallel = LAYOUTS[layout]
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        moved = start(parallel, stage, precision, groups, 4)
        moved.load(folder / "straight")
        moved.save(folder / "moved", 4)
        moved.optimizer.close()


def same_tensors(one: Path, other: Path) -> None:
    left, right = (read_tensors(find_commit(path).path) for path in (one, other))
    assert left.names() == right.names()
    for name in left.names():
        assert left.dtype(name) == right.dtype(name)
        assert torch.equal(left.read(name), right.read(name)), name


@pytest.mark.parametrize(
    ("layout", "stage", "precision", "other"),
    [
        ("dp2", "stage2", "fp32", "tp2"),
        ("tp2", "stage3", "bf16", "pp2"),
        ("pp2", "stage1", "fp32", "dp2"),  # the second pipeline stage trains nothing
        ("pp2", "stage2", "bf16", "tp2"),  # and here it trains a second copy of the tied embedding
    ],
)
def test_resume_is_bit_for_bit_and_another_layout_reads_it(
    layout: str, stage: str, precision: str, other: str, worlds: Worlds, tmp_path: Path
) -> None:
    worlds.run(2, stop_and_go_on, layout=layout, stage=stage, precision=precision, folder=tmp_path)
    same_tensors(tmp_path / "resumed", tmp_path / "straight")
    before, after = (read_tensors(find_commit(tmp_path / name).path) for name in ("stopped", "straight"))
    trained = [name for name in after.names() if name.startswith("optimizer.master.")]
    assert trained and all(not torch.equal(before.read(name), after.read(name)) for name in trained)
    weights = {name: after.shape(name) for name in after.names() if not name.startswith("optimizer.")}
    assert weights == {name: canonical_shape(pieces) for name, pieces in hf_pieces(MODEL).items()}
    worlds.run(2, move, layout=other, stage=stage, precision=precision, folder=tmp_path)
    same_tensors(tmp_path / "moved", tmp_path / "straight")
