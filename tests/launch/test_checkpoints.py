"""`triptych checkpoint verify` and `repair`: what is wrong inside a checkpoint is named, and masters make it right."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from launch.checkpoints.repair import faults, repair
from tests.harness.damaged import COUNTERS, change_values, forget, reseal, save_trained, store_under
from tests.launch.commands import end
from train.checkpoint import commits
from train.checkpoint.commits import open_commit
from train.checkpoint.load import find_commit, read_tensors
from train.checkpoint.tensors import TensorReader
from train.config import RunConfig
from train.resolve import compose

WEIGHT, NORM, FROZEN = (
    "merger.fc1.weight",
    "vision.blocks.layers.0.input_layernorm.bias",
    "language.decoder.final_layernorm.weight",
)
PLACES = (0, 3, 99)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The quickstart's first stage, which trains tower and merger, with two checkpoints of one small model."""
    run = compose("quickstart_stage1")
    assert run.model.vision is not None
    language = replace(run.model.language, num_layers=1, vocab_size=97, ffn_size=64)
    model = replace(run.model, vision=replace(run.model.vision, depth=1), language=language)
    run = replace(run, model=model, run_dir=str(tmp_path_factory.mktemp("made") / "run"))
    for step in (4, 7):
        save_trained(run, step)
    return run


@pytest.fixture
def run_dir(made: RunConfig, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made.run_dir, tmp_path / "run"))


def newest(run_dir: Path) -> Path:
    return commits.attempts(run_dir)[0].path


def put(value: float, places: tuple[int, ...] = PLACES) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        tensor.view(-1)[list(places)] = value

    return change


def everything(path: Path) -> dict[str, Tensor]:
    reader = read_tensors(path)
    return {name: reader.read(name) for name in reader.names()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8))
        for name, tensor in one.items()
    )


def test_a_whole_checkpoint_is_in_order_and_is_not_written_again(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(run_dir.rglob("*"))
    assert end("checkpoint", "verify", str(run_dir)) == 0
    assert capsys.readouterr().out.count("every digest holds, every tensor is in order") == 2
    assert end("checkpoint", "repair", str(run_dir)) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert {path.name for path in set(run_dir.rglob("*")) - before} == {commits.VERIFIED}


def test_weights_become_their_masters_again(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = newest(run_dir)
    whole, state, files = everything(path), open_commit(path).state, commits.listed_files(path)
    change_values(path, WEIGHT, lambda tensor: tensor.view(-1)[:5].add_(0.5))
    change_values(path, NORM, put(math.nan))
    damaged = commits.listed_files(path)
    assert end("checkpoint", "verify", str(run_dir)) == 1
    told = capsys.readouterr().out
    assert f"{WEIGHT}: 5 of 262144 elements are not their fp32 master in bfloat16, by up to 0.5" in told
    assert f"{NORM}: 3 of 128 elements are not finite" in told
    assert "2 tensor(s) are not in order; `triptych checkpoint repair` mends it" in told
    assert end("checkpoint", "repair", str(run_dir)) == 0
    told = capsys.readouterr().out
    assert "2 weight(s) made their fp32 masters again" in told and WEIGHT in told and NORM in told

    repaired = newest(run_dir)
    assert repaired != path and find_commit(run_dir).path == repaired and f"wrote {repaired}" in told
    assert same(everything(repaired), whole)
    note = open_commit(repaired).state
    (entry,) = note["repaired"]
    assert entry["from"] == path.name and {line.split(":")[0] for line in entry["found"]} == {WEIGHT, NORM}
    assert {key: note[key] for key in state if key != "saved_at"} == {
        key: value for key, value in state.items() if key != "saved_at"
    }
    assert {key: note[key] for key in COUNTERS} == COUNTERS
    assert find_commit(repaired).recipe == (path / "recipe.yaml").read_text()
    # The old one is as it was, damage and all, and so is the one before; another repair finds nothing to do.
    assert commits.listed_files(path) == damaged != files and not commits.problems(path)
    assert len(commits.attempts(run_dir)) == 3
    assert end("checkpoint", "verify", str(repaired)) == 0
    assert end("checkpoint", "repair", str(run_dir)) == 0 and newest(run_dir) == repaired


def test_an_older_checkpoint_is_repaired_by_name_and_stays_older(run_dir: Path) -> None:
    latest, old = [attempt.path for attempt in commits.attempts(run_dir)]
    change_values(old, WEIGHT, put(1.0))
    assert repair(run_dir)[0] is None
    path, _ = repair(old)
    assert path is not None and open_commit(path).step == 4 and newest(run_dir) == latest
    change_values(path, NORM, put(2.0))
    again, _ = repair(path)
    assert again is not None
    assert [entry["from"] for entry in open_commit(again).state["repaired"]] == [old.name, path.name]


INCURABLE = {
    "nan in a frozen weight": (lambda path: change_values(path, FROZEN, put(math.nan)), f"{FROZEN}: 3 of 128"),
    "infinite master": (
        lambda path: change_values(path, f"optimizer.master.{WEIGHT}", put(math.inf)),
        f"optimizer.master.{WEIGHT}: 3 of 262144 elements are not finite",
    ),
    "nan in a first moment": (
        lambda path: change_values(path, f"optimizer.exp_avg.{NORM}", put(math.nan)),
        f"optimizer.exp_avg.{NORM}: 3 of 128 elements are not finite",
    ),
    "negative second moment": (
        lambda path: change_values(path, f"optimizer.exp_avg_sq.{NORM}", put(-0.25)),
        f"optimizer.exp_avg_sq.{NORM}: 3 of 128 second moments are negative, down to -0.25",
    ),
    "no master": (lambda path: forget(path, f"optimizer.master.{NORM}"), f"optimizer.master.{NORM}: missing"),
    "no second moment": (lambda path: forget(path, f"optimizer.exp_avg_sq.{NORM}"), f"exp_avg_sq.{NORM}: missing"),
    "no weight": (lambda path: forget(path, WEIGHT), f"{WEIGHT}: missing"),
    "a head beside tied embeddings": (
        lambda path: store_under(path, "language.embedding.word_embeddings.weight", "language.output_layer.weight"),
        "language.output_layer.weight: unknown",
    ),
    "state of a frozen weight": (
        lambda path: store_under(path, f"optimizer.master.{NORM}", f"optimizer.master.{FROZEN}"),
        f"optimizer.master.{FROZEN}: unknown",
    ),
    "another shape": (
        lambda path: (forget(path, FROZEN), store_under(path, WEIGHT, FROZEN)),
        f"{FROZEN}: has shape (512, 512), the recipe's model has (128,)",
    ),
    "a master in bf16": (
        lambda path: (forget(path, f"optimizer.master.{NORM}"), store_under(path, NORM, f"optimizer.master.{NORM}")),
        f"optimizer.master.{NORM}: is bfloat16, should be float32",
    ),
    "no recipe": (lambda path: ((path / "recipe.yaml").write_text("seed: 1\n"), reseal(path)), "recipe.yaml: "),
    "a file of zeros": (
        lambda path: ((path / "merger.00000.safetensors").write_bytes(bytes(999_999)), reseal(path)),
        "merger.00000.safetensors holds no boxes",
    ),
    "an empty file": (
        lambda path: ((path / "merger.00000.safetensors").write_bytes(b""), reseal(path)),
        "merger.00000.safetensors holds no boxes",
    ),
}


@pytest.mark.parametrize("damage", INCURABLE)
def test_what_no_master_can_mend_is_named_and_refused(
    damage: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latest, before = [attempt.path for attempt in commits.attempts(run_dir)]
    spoil, named = INCURABLE[damage]
    spoil(latest)
    # What could be mended is not mended beside it.
    if damage in ("nan in a frozen weight", "negative second moment"):
        change_values(latest, WEIGHT, put(1.0))
    assert end("checkpoint", "verify", str(latest)) == 1
    told = capsys.readouterr().out
    assert named in told and "beyond repair" in told
    assert end("checkpoint", "repair", str(run_dir)) == 2
    told = capsys.readouterr().err
    assert named in told and f"{latest.name} cannot be repaired" in told
    assert f"move it out of the run, and `triptych resume` goes on from {before.name}" in told
    assert [attempt.path for attempt in commits.attempts(run_dir)] == [latest, before]


def test_a_broken_digest_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latest, before = [attempt.path for attempt in commits.attempts(run_dir)]
    (latest / "state.json").write_text("{}")
    assert end("checkpoint", "repair", str(run_dir)) == 2
    told = capsys.readouterr().err
    assert "state.json has size" in told
    assert f"`triptych resume` passes over it, and goes on from {before.name}" in told
    shutil.rmtree(before)
    assert end("checkpoint", "repair", str(latest)) == 2
    assert "no finished checkpoint before it" in capsys.readouterr().err


def test_where_there_is_nothing_to_repair_it_says_so(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("checkpoint", "repair", str(tmp_path / "nowhere")) == 2
    assert "has no finished checkpoint" in capsys.readouterr().err
    moved = newest(run_dir).rename(tmp_path / newest(run_dir).name)
    assert end("checkpoint", "repair", str(moved)) == 2
    assert "does not lie in the checkpoints folder of a run" in capsys.readouterr().err


def test_a_full_disk_is_noticed_before_anything_is_written(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_values(newest(run_dir), WEIGHT, put(1.0))
    usage = shutil.disk_usage(run_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert end("checkpoint", "repair", str(run_dir)) == 2
    assert "has 1e-06 GB left" in capsys.readouterr().err and len(commits.attempts(run_dir)) == 2


def test_a_repair_that_stops_at_any_file_counts_for_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file ends in fsync: cut at the first, in the middle, and at each of the last, which seal."""
    latest = newest(run_dir)
    change_values(latest, WEIGHT, put(1.0))
    whole = shutil.copytree(run_dir, run_dir.with_name("whole"))
    seen = {"calls": 0, "stop at": math.inf}

    def counted(_: int) -> None:
        seen["calls"] += 1
        if seen["calls"] >= seen["stop at"]:
            raise SystemExit("stopped")

    monkeypatch.setattr(os, "fsync", counted)
    assert repair(whole)[0] is not None
    total = int(seen["calls"])
    for stop_at in range(1, total):  # the very last comes after the seal
        seen |= {"calls": 0, "stop at": stop_at}
        with pytest.raises((SystemExit, ValueError), match="stopped"):
            repair(run_dir)
        assert find_commit(run_dir).path == latest
    seen["stop at"] = math.inf
    path, _ = repair(run_dir)
    assert path is not None and find_commit(run_dir).path == path and not faults(open_commit(path))


def test_an_interrupted_verify_ends(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorReader, "read", interrupted)
    assert end("checkpoint", "verify", run_dir) == 130


def test_fp32_weights_are_held_to_every_bit(made: RunConfig, tmp_path: Path) -> None:
    run = replace(made, run_dir=str(tmp_path / "run"), precision="fp32")
    path = save_trained(run, 1, torch.float32)
    assert not faults(open_commit(path))
    change_values(path, WEIGHT, lambda tensor: tensor.view(torch.int32).view(-1)[:2].bitwise_xor_(1))
    (fault,) = faults(open_commit(path))
    assert (fault.tensor, fault.kind, fault.elements) == (WEIGHT, "unlike its master", 2)
    assert 0 < fault.largest < 1e-7 and fault.curable
