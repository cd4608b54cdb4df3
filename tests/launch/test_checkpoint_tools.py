"""`triptych checkpoint list|diff|prune|average`, and what each says with --json."""

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.checkpoints import listing
from launch.checkpoints.tools import averaged
from tests.harness.damaged import change_values, save_trained
from tests.launch.commands import end
from tests.train.toy_layouts import one
from train.checkpoint import commits, pruning
from train.checkpoint.entries import ALONE
from train.checkpoint.load import find_commit, read_tensors
from train.checkpoint.run import RunCheckpoints
from train.config import RunConfig
from train.resolve import compose

WEIGHT = "merger.linear_fc1.weight"


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    made = compose("quickstart_stage2")
    return replace(made, run_dir=str(tmp_path / "run"))


def data_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    status = end("checkpoint", *words, "--json")
    return status, json.loads(capsys.readouterr().out)


def toy_run(folder: Path, losses: dict[int, float]) -> dict[int, Path]:
    """A run with a frozen part and a checkpoint for each step."""
    toy = one().fill()
    made = RunCheckpoints(
        folder, toy.parameters, toy.boxes, toy, writer=ALONE, frozen=("vision",), keep=99, commit_seconds=30.0
    )  # type: ignore[arg-type]
    paths = {}
    for step, loss in losses.items():
        made.save(step, {"stage": "stage1", "loss": loss, "counters": {"tokens": 10 * step}}, "seed: 1\n")
        paths[step] = made.finish().path
    return paths


def test_a_list_says_what_each_is_without_reading_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = toy_run(tmp_path, {5: 2.5, 9: 1.25})
    for path in paths.values():
        for file in path.glob("*.safetensors"):
            file.write_bytes(b"")  # no list looks into them
    status, rows = data_of(capsys, "list", str(tmp_path))
    assert status == 0 and [row["name"] for row in rows] == [paths[9].name, paths[5].name]
    assert [(row["step"], row["stage"], row["tokens"], row["loss"]) for row in rows] == [
        (9, "stage1", 90, 1.25),
        (5, "stage1", 50, 2.5),
    ]
    assert rows[0]["written_gb"] < rows[0]["gb"] == pytest.approx(rows[1]["written_gb"], rel=0.05)
    assert all(row["verified"] == "not since" for row in rows)
    (paths[9] / "files.json").write_text("{}")
    assert end("checkpoint", "list", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["checkpoint", "step", "stage"] and "damaged: files.json does not have" in lines[1]


def test_what_is_found_damaged_is_no_longer_called_verified(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_trained(run, 1, torch.float32)
    assert data_of(capsys, "verify", run.run_dir)[0] == 0
    assert data_of(capsys, "list", run.run_dir)[1][0]["verified"].startswith("20")
    file = next(path.glob("optimizer.*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert data_of(capsys, "verify", run.run_dir)[0] == 1
    assert data_of(capsys, "list", run.run_dir)[1][0]["verified"] == "not since"


def test_a_save_under_way_is_no_damage(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    under_way = commits.attempt_path(run.run_dir, 2, "00000000")
    under_way.mkdir(parents=True)
    assert data_of(capsys, "verify", run.run_dir)[0] == 1, "nothing is finished"
    save_trained(run, 1, torch.float32)
    status, rows = data_of(capsys, "verify", run.run_dir)
    assert status == 0 and [(row["finished"], row["problems"]) for row in rows] == [(False, []), (True, [])]
    assert end("checkpoint", "verify", run.run_dir) == 0
    assert f"{under_way.name}  never finished: the save is under way" in capsys.readouterr().out


def test_a_difference_is_told_tensor_by_tensor(run: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (
        save_trained(run, 1, torch.float32),
        save_trained(replace(run, run_dir=run.run_dir + "2"), 1, torch.float32),
    )
    assert data_of(capsys, "diff", str(first), str(second)) == (0, [])
    name = next(name for name in read_tensors(first).names() if name.startswith("merger.") and name.endswith("weight"))
    change_values(second, name, lambda tensor: tensor.view(-1)[:3].add_(2.0))
    whole = read_tensors(first).read(name)
    status, (row,) = data_of(capsys, "diff", str(first), str(second))
    assert status == 1 and (row["tensor"], row["differ"], row["of"]) == (name, 3, whole.numel())
    assert row["largest"] == pytest.approx(2.0, rel=1e-5)
    assert row["relative"] == pytest.approx(math.sqrt(12) / float(whole.norm()), rel=1e-5)
    change_values(second, name, lambda tensor: tensor.view(-1)[:1].fill_(math.nan))
    assert end("checkpoint", "diff", str(first), str(second)) == 1
    assert "not finite" in capsys.readouterr().out


POLICIES: dict[str, tuple[list[str], set[int]]] = {
    "last": (["--last", "2"], {40, 50}),
    "every": (["--every", "20"], {20, 40, 50}),
    "best": (["--best", "loss"], {30, 50}),
    "best two": (["--best", "loss:2"], {30, 10, 50}),
    "all": (["--last", "1", "--every", "40", "--best", "loss"], {30, 40, 50}),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_policy_keeps_stays_whole(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = toy_run(tmp_path, {10: 1.5, 20: 2.0, 30: 1.0, 40: 3.0, 50: 2.5})
    words, steps = POLICIES[policy]
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    status, told = data_of(capsys, "prune", str(tmp_path), *words, "--dry-run")
    assert status == 0 and sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    assert end("checkpoint", "prune", str(tmp_path), *words) == 0
    left = commits.attempts(tmp_path)
    assert {attempt.step for attempt in left} == steps and {attempt.path.name for attempt in left} == set(told["kept"])
    assert not any(commits.problems(attempt.path) for attempt in left), "what they refer to is still there"
    assert (paths[10] / "vision.00000.safetensors").exists() and not (paths[20] / "x").exists()
    capsys.readouterr()


def test_a_damaged_newest_one_is_no_reason_to_delete_the_one_that_is_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0, 30: 1.0})
    file = next(paths[30].glob("optimizer.*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    status, told = data_of(capsys, "prune", str(tmp_path), "--last", "1")
    assert status == 0 and told["kept"] == [paths[20].name] and told["deleted"] == [paths[10].name]
    assert "crc32c" in told["damaged"][paths[30].name]
    assert find_commit(tmp_path, tell=lambda _: None).path == paths[20]
    (paths[20] / "files.json").write_text("{}")
    toy_run(tmp_path, {40: 1.0, 50: 1.0})
    status, told = data_of(capsys, "prune", str(tmp_path), "--last", "1")
    assert status == 0 and len(told["deleted"]) == 2 and paths[20].name in told["damaged"]
    assert find_commit(tmp_path, tell=lambda _: None).step == 50


def deletes_beside(module: Any, monkeypatch: pytest.MonkeyPatch, run_dir: Path, newest: Path, keep: int = 1) -> None:
    """The run that trains there prunes after the first checkpoint that a tool has read."""
    read = module.problems

    def problems(path: Path, *more: Any, **named: Any) -> list[str]:
        pruning.prune(run_dir, keep, newest)
        return read(path, *more, **named)

    monkeypatch.setattr(module, "problems", problems)


def test_what_a_run_deletes_while_it_is_verified_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0, 30: 1.0})
    monkeypatch.setattr(listing, "faults", lambda commit: [])
    deletes_beside(listing, monkeypatch, tmp_path, paths[30])
    assert end("checkpoint", "verify", str(tmp_path)) == 0
    told = capsys.readouterr().out.splitlines()
    assert "every digest holds" in told[0] and all("deleted while it was read" in line for line in told[1:])
    assert len(told) == 3 and {attempt.path for attempt in commits.attempts(tmp_path)} == {paths[30]}


def test_a_seal_that_goes_while_it_is_read_is_said_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, read = toy_run(tmp_path, {10: 3.0, 20: 2.0}), Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == paths[10] / commits.FILES:
            (paths[10] / commits.COMMIT).unlink()
        return read(path)

    monkeypatch.setattr(listing, "faults", lambda commit: [])
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert end("checkpoint", "verify", str(tmp_path)) == 0
    assert "deleted while it was read" in capsys.readouterr().out.splitlines()[1]


def test_what_a_run_has_sealed_meanwhile_is_found_when_all_that_was_listed_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0, 30: 1.0})
    listed, told = commits.attempts, list[str]()

    def listed_before_the_run_goes_on(where: Path) -> list[commits.Attempt]:
        found = [attempt for attempt in listed(where) if attempt.path != paths[30]]
        monkeypatch.undo()
        pruning.prune(tmp_path, 1, paths[30])
        return found

    monkeypatch.setattr(commits, "attempts", listed_before_the_run_goes_on)
    assert find_commit(tmp_path, tell=told.append).path == paths[30]
    assert len(told) == 2, "all that it had listed"


def test_pruning_goes_on_beside_a_run_that_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0, 30: 1.0, 40: 2.0})
    deletes_beside(commits, monkeypatch, tmp_path, paths[40], keep=2)
    assert end("checkpoint", "prune", str(tmp_path), "--last", "1", "--best", "loss") == 0
    assert {attempt.step for attempt in commits.attempts(tmp_path)} == {30, 40}
    assert not commits.problems(paths[40])
    assert [path.parent for path in tmp_path.glob("checkpoints/*/PRUNED")] == [paths[10]], "both refer to its tower"
    capsys.readouterr()


def test_what_a_run_seals_while_a_tool_deletes_keeps_what_it_refers_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0, 30: 1.0})
    seal = paths[30] / commits.COMMIT
    sealed, read, looked = seal.read_bytes(), pruning.listed_files, list[Path]()
    seal.unlink()

    def listed_files(path: Path) -> dict[str, commits.FileEntry]:
        looked.append(path)
        if len(looked) == 1:  # the list that the tool has made has neither of the two any more
            seal.write_bytes(sealed)
            pruning.prune(tmp_path, 1, paths[30])
        return read(path)

    monkeypatch.setattr(pruning, "listed_files", listed_files)
    pruning.delete(tmp_path, [paths[10]])
    assert looked[0] == paths[20] and [each.path for each in commits.attempts(tmp_path)] == [paths[30]]
    assert not commits.problems(paths[30]), "its tower lies in what was deleted"


def test_a_deleted_file_that_is_still_read_over_nfs_stops_no_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0, 30: 1.0})
    held = {path / ".nfs0000000000a1" for path in (paths[10], paths[20])}
    for file in held:
        file.touch()
    unlink = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path in held:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    pruning.prune(tmp_path, 1, paths[30])
    assert {file.name for file in paths[20].iterdir()} == {".nfs0000000000a1", "PRUNED"}
    assert not commits.problems(paths[30])
    monkeypatch.undo()
    (paths[20] / ".nfs0000000000a1").unlink()
    pruning.prune(tmp_path, 1, paths[30])
    assert not paths[20].exists()


def test_pruning_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full is what it is called for."""
    paths = toy_run(tmp_path, {10: 3.0, 20: 2.0})

    def full(path: Path, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(pruning.disk, "write", full)
    pruning.prune(tmp_path, 1, paths[20])
    assert [each.path for each in commits.attempts(tmp_path)] == [paths[20]] and not commits.problems(paths[20])


def test_unfinished_folders_go_once_their_writer_has_gone(tmp_path: Path) -> None:
    paths = toy_run(tmp_path, {10: 3.0})
    left, new = (commits.attempt_path(tmp_path, 20, f"0000000{number}") for number in range(2))
    for path in (left, new):
        path.mkdir()
    os.utime(left, (0, 0))
    assert end("checkpoint", "prune", str(tmp_path), "--last", "1") == 0
    assert {path.name for path in paths[10].parent.iterdir()} == {paths[10].name, new.name}


def test_pruning_refuses_what_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = toy_run(tmp_path, {10: 1.5, 20: 2.0})
    for words, told in (
        ([], "nothing says what to keep"),
        (["--best", "accuracy"], "no checkpoint says its 'accuracy'"),
        (["--keep", "step_00000099.00000000"], "has no finished checkpoint step_00000099.00000000"),
    ):
        assert end("checkpoint", "prune", str(tmp_path), *words) == 2
        assert told in capsys.readouterr().err
    assert end("checkpoint", "prune", str(tmp_path), "--keep", paths[10].name) == 0
    assert {attempt.step for attempt in commits.attempts(tmp_path)} == {10, 20}, "the newest always stays"


def test_a_mean_is_taken_of_masters_and_can_be_gone_on_from(run: RunConfig, tmp_path: Path) -> None:
    paths = [save_trained(replace(run, run_dir=f"{run.run_dir}{step}"), step) for step in (1, 2, 3)]
    report = averaged(tmp_path / "mean", paths)
    commit = find_commit(tmp_path / "mean")
    assert report.data["path"] == str(commit.path) and commit.step == 0 and len(commit.state["of"]) == 3
    reader, readers = read_tensors(commit.path), [read_tensors(path) for path in paths]
    assert not any(name.startswith("optimizer.") for name in reader.names())
    for name in reader.names():
        masters = [each.read(f"optimizer.master.{name}").double() for each in readers]
        assert torch.equal(reader.read(name), (sum(masters) / 3).to(torch.bfloat16))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        averaged(tmp_path / "mean", paths)
    with pytest.raises(ValueError, match="two checkpoints or more"):
        averaged(tmp_path / "other", paths[:1])
