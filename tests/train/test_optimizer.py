"""Which rate and which decay reach each tensor: by hand, on every layout, and through a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.build import build_model
from model.hf_weights import hf_pieces
from parallel.config import ParallelConfig
from parallel.world import imagined_rank, model_parallel, pick_device
from tests.harness.commits import save_commit
from tests.harness.compare import compare
from tests.harness.layouts import MODEL, start, train_on_layout
from tests.harness.updates import CHANGES, RATES, check_updates, one_step
from tests.prove.context import LAYOUTS, Worlds
from train.checkpoint.entries import writer_of
from train.checkpoint.load import find_commit, load_optimizer, load_weights, read_tensors
from train.optimizer import is_vector, state_bytes
from train.rates import layers_below_last
from train.resolve import compose
from train.state import TrainState
from train.step import train_step

UNTIED = replace(MODEL, language=replace(MODEL.language, tie_embeddings=False))


def test_exponents_of_layers_are_those_written_out_by_hand() -> None:
    peaks, factors = CHANGES["learning_rates"], {"vision": 0.5, "language": 0.8, "merger": 1.0}
    for name in hf_pieces(UNTIED):
        part = name.partition(".")[0]
        (rate,) = (rate for prefix, rate in RATES.items() if name.startswith(prefix))
        assert peaks[part] * factors[part] ** layers_below_last(UNTIED, name) == pytest.approx(rate), name


def test_norms_and_biases_are_vectors_and_nothing_else_is() -> None:
    """In transformers' shapes a vector has one dim; ours may have several (a fused bias)."""
    for name, pieces in hf_pieces(UNTIED).items():
        assert is_vector(name) == (len(pieces[0].hf_shape) == 1), name


@pytest.mark.parametrize(
    ("layout", "stage", "model"),
    [
        ("one process", "stage2", MODEL),
        ("one process", "stage1", MODEL),
        ("TP2", "stage2", MODEL),
        ("PP2", "stage2", MODEL),
        ("PP2", "stage2", UNTIED),
        ("PP2", "stage1", MODEL),
        ("PP2", "stage3", MODEL),
        ("DP2", "stage3", MODEL),
    ],
)
def test_a_step_is_adamw_by_hand_with_the_rate_and_decay_of_each_layer(
    layout: str, stage: str, model: Any, worlds: Worlds
) -> None:
    size, parallel = LAYOUTS[layout]
    found = check_updates(worlds.run(size, one_step, parallel=parallel, stage=stage, model=model))
    assert found.wrong == found.decayed_vectors == found.moved_frozen == []
    assert found.looked_at == len(hf_pieces(model))


@pytest.mark.parametrize("layout", ["TP2", "PP2"])
def test_layer_decay_trains_alike_on_every_layout(layout: str, worlds: Worlds) -> None:
    changes = {"weight_decays": {"vision": 0.3}, "layer_decays": {"vision": 0.5, "language": 0.8}}
    size, parallel = LAYOUTS[layout]
    one = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage="stage2", changes=changes)
    records = worlds.run(size, train_on_layout, parallel=parallel, stage="stage2", changes=changes)
    difference = compare(one, records)
    assert difference.largest < 1e-5, difference
    plain = worlds.run(1, train_on_layout, parallel=ParallelConfig(), stage="stage2")
    assert compare(plain, one).weight > 1e-5, "the changes reach the weights"


def groups_of(parallel: ParallelConfig, changes: dict[str, Any]) -> list[tuple[float, int, bool]]:
    """Of each of this rank's groups: weight decay, elements, and whether it holds anything that may not be decayed."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, "stage2", groups, changes=changes)
        adamw = made.optimizer._zero.optimizer
        vectors = {p for name, p in made.built.trainable() if name in made.built.boxes and p.dim() <= 1}
        found = [
            (group["weight_decay"], sum(p.numel() for p in parameters), any(p in vectors for p in parameters))
            for group, parameters in zip(adamw.param_groups, made.optimizer._zero.bit16_groups, strict=True)
        ]
        made.optimizer.close()
        return found


def test_every_rank_lists_the_same_groups_and_decayed_ones_hold_no_vector(worlds: Worlds) -> None:
    by_rank = worlds.run(2, groups_of, parallel=ParallelConfig(pipeline=2), changes=CHANGES)
    assert [decay for decay, *_ in by_rank[0]] == [decay for decay, *_ in by_rank[1]]
    # Tower: patches, 2 layers of two kinds; merger: two kinds; language: embedding, 4 layers of two kinds.
    assert len(by_rank[0]) == 5 + 2 + 9
    assert all(decay == 0.0 or not has_vector for groups in by_rank for decay, _, has_vector in groups)
    assert sorted({decay for decay, *_ in by_rank[0]}) == [0.0, 0.05, 0.2, 0.5]
    plain = worlds.run(1, groups_of, parallel=ParallelConfig(), changes={"weight_decays": {"merger": 0.0}})[0]
    assert [decay for decay, *_ in plain] == [0.05, 0.0, 0.0, 0.0, 0.05, 0.0]


def test_bytes_of_a_rank_are_known_without_memory() -> None:
    """The 2B in bf16 on 16 replicas: 2 bytes of weight and 4 of accumulator, and a 16th of 12 bytes of state."""
    run = compose("qwen2vl_2b_stage2")
    with imagined_rank(run.parallel, world_size=16, rank=0) as groups:
        everything = build_model(run.model, run.parallel, groups, torch.bfloat16, run.stage.trainable)
        held = state_bytes(run, everything, dp_size=16)
        assert held.always == held.after_reduction == pytest.approx(2_208_985_600 * (2 + 4 + 12 / 16), rel=1e-6)
        locked = replace(run, stage=replace(run.stage, trainable=("merger",)))
        merger_alone = build_model(run.model, run.parallel, groups, torch.bfloat16, ("merger",))
        merger = 5120**2 + 5120 + 5120 * 1536 + 1536 + 2 * 1280
        due = 2_208_985_600 * 2 + merger * (4 + 12 / 16)
        assert state_bytes(locked, merger_alone, dp_size=16).always == pytest.approx(due, rel=1e-6)


def regroup(folder: Path, parallel: ParallelConfig) -> None:
    """On every rank: two steps without layer-wise decay, a commit, and with it loaded into other groups two more."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        for name, changes in (("plain", {}), ("grouped", {"layer_decays": CHANGES["layer_decays"]})):
            made = start(parallel, "stage2", groups, changes=changes)
            parameters, boxes = dict(made.built.module.named_parameters()), made.built.boxes
            state = TrainState()
            if name == "grouped":
                with torch.no_grad():
                    for parameter in parameters.values():
                        parameter.zero_()  # whatever is not loaded shows
                commit = find_commit(folder / "plain")
                load_weights(commit, parameters, boxes)
                load_optimizer(commit, boxes, made.optimizer)
                assert made.optimizer.steps_taken == 2
                save_commit(
                    folder / name, 2, parameters, boxes, made.optimizer, {}, "", writer=writer_of(groups), keep=9
                )
            for _ in range(2):
                train_step(made.parts, state)
            step = 2 if name == "plain" else 4
            save_commit(
                folder / name, step, parameters, boxes, made.optimizer, {}, "", writer=writer_of(groups), keep=9
            )
            made.optimizer.close()


@pytest.mark.parametrize("layout", ["TP2", "PP2"])
def test_a_run_goes_on_with_other_groups(layout: str, worlds: Worlds, tmp_path: Path) -> None:
    worlds.run(2, regroup, folder=tmp_path, parallel=LAYOUTS[layout][1])
    plain, (last, moved) = (
        find_commit(tmp_path / "plain"),
        sorted((tmp_path / "grouped" / "checkpoints").iterdir())[::-1],
    )
    before, same, after = read_tensors(plain.path), read_tensors(moved), read_tensors(last)
    assert before.names() == same.names() == after.names()
    for name in before.names():
        assert torch.equal(before.read(name), same.read(name)), name
        assert name.endswith(".bias") or not torch.equal(before.read(name), after.read(name)), name
