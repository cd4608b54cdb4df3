"""Checkpoint folders that were damaged, cut short or outlived: what is found, what is said, what is deleted."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.train.toy_layouts import differing, one, save
from train.checkpoint import commits, disk
from train.checkpoint.load import find_commit, load_optimizer, load_weights
from train.errors import CheckpointError


def damage(path: Path, how: str) -> None:
    data = path / "language.00000.safetensors"
    if how == "bit":
        raw = bytearray(data.read_bytes())
        raw[-9] ^= 64
        data.write_bytes(raw)
    elif how == "short":
        os.truncate(data, data.stat().st_size - 1)
    elif how == "absent":
        data.unlink()
    elif how == "unsealed":
        (path / "COMMIT").unlink()
    elif how == "state":
        (path / "state.json").write_text((path / "state.json").read_text().replace("12345", "12346"))
    elif how == "list":
        listed = json.loads((path / "files.json").read_text())
        del listed["files"]["language.00000.safetensors"]
        (path / "files.json").write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("bit", "language.00000.safetensors has crc32c"),
        ("short", "language.00000.safetensors has size"),
        ("absent", "language.00000.safetensors cannot be read"),
        ("unsealed", "never finished"),
        ("state", "state.json has crc32c"),
        ("list", "SHA-256"),
    ],
)
def test_a_damaged_commit_is_passed_over_with_the_reason(how: str, why: str, tmp_path: Path) -> None:
    old, new = save(one().fill(), tmp_path, 1), save(one().fill(), tmp_path, 2)
    damage(new, how)
    told: list[str] = []
    assert find_commit(tmp_path, tell=told.append).path == old
    assert len(told) == 1 and new.name in told[0] and why in told[0]
    with pytest.raises(ValueError, match="no checkpoint that can be used"):
        find_commit(new, tell=told.append)


def test_a_save_stopped_at_any_sync_leaves_the_old_or_the_whole_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every durable write ends in fsync, so stopping at each one in turn visits every state a crash can leave."""
    real = os.fsync
    outcomes = []
    for stop_at in range(1, 100):
        run = tmp_path / str(stop_at)
        old = save(one().fill(), run, 1)
        calls = 0

        def stop(number: int, stop_at: int = stop_at) -> None:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise SystemExit("stopped")
            real(number)

        monkeypatch.setattr(os, "fsync", stop)
        with contextlib.suppress(SystemExit, CheckpointError):
            save(one().fill(), run, 2)
        monkeypatch.setattr(os, "fsync", real)
        commit = find_commit(run, tell=lambda _: None)
        toy = one()
        load_weights(commit, toy.parameters, toy.boxes)  # type: ignore[arg-type]
        load_optimizer(commit, toy.boxes, toy)  # type: ignore[arg-type]
        assert not differing(toy) and old.exists()
        outcomes.append(commit.step)
        if calls < stop_at:
            break
    # folder, 4 files of tensors, 3 others, list, seal, folder before and after the seal: what was not waited for to its
    # end is no checkpoint.
    assert outcomes == [1] * 12 + [2]


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint folder"):
        find_commit(tmp_path)


def test_pruning_keeps_what_it_must(tmp_path: Path) -> None:
    paths = {step: save(one().fill(), tmp_path, step) for step in (10, 20, 30, 40)}
    damage(paths[20], "unsealed")
    damage(paths[40], "bit")  # so the run goes on from step 30
    new = save(one().fill(), tmp_path, 35, keep=2)
    left = {attempt.path for attempt in commits.attempts(tmp_path)}
    assert left == {new, paths[30], paths[20], paths[40]}
    assert find_commit(tmp_path, tell=lambda _: None).path == new
    last = save(one().fill(), tmp_path, 36, keep=0)
    assert {attempt.path for attempt in commits.attempts(tmp_path)} == {last, paths[20], paths[40]}


def test_saving_a_step_twice_leaves_both_whole(tmp_path: Path) -> None:
    first, second = save(one().fill(), tmp_path, 5), save(one().fill(), tmp_path, 5)
    assert first != second and not commits.problems(first) and not commits.problems(second)
    assert find_commit(tmp_path).path == second


def test_a_run_that_was_copied_has_the_same_newest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for hour in (1, 2, 3):
        monkeypatch.setattr(commits, "now", lambda hour=hour: f"2026-11-22T0{hour}:00:00Z")
        paths.append(save(one().fill(), tmp_path, 5))
    for path, time in zip(paths, (3, 1, 2), strict=True):
        os.utime(path / commits.COMMIT, (time, time))
    assert [attempt.path for attempt in commits.attempts(tmp_path)] == paths[::-1]
    (paths[1] / "state.json").write_text("[]")  # what says nothing comes last
    assert [attempt.path for attempt in commits.attempts(tmp_path)] == [paths[2], paths[0], paths[1]]


FOLDER = "step_00000001.00000000"


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {"format": commits.FORMAT},
        {
            "format": commits.FORMAT,
            "files": {"recipe.yaml": {"size": 1, "crc32c": "0", "folder": "step_00000001.00000000"}},
        },
        {"format": commits.FORMAT, "files": {"state.json": {}, "recipe.yaml": {}}},
        {"format": commits.FORMAT, "files": {"state.json": {"size": 1, "crc32c": "0", "folder": 5}, "recipe.yaml": 1}},
        {"format": commits.FORMAT, "files": {"..": {}, "state.json": {}, "recipe.yaml": {}}},
    ],
)
def test_a_list_of_files_that_is_none_is_passed_over(listed: object, tmp_path: Path) -> None:
    old, new = save(one().fill(), tmp_path, 1), save(one().fill(), tmp_path, 2)
    text = json.dumps(listed).encode()
    (new / commits.FILES).write_bytes(text)
    (new / commits.COMMIT).write_bytes(hashlib.sha256(text).hexdigest().encode())
    told: list[str] = []
    assert find_commit(tmp_path, tell=told.append).path == old and "files.json" in told[0]
    found = commits.newest_readable(tmp_path)
    assert found is not None and found.path == old


def test_what_a_seal_could_not_wait_for_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, sync, calls = save(one().fill(), tmp_path, 1), disk.sync_folder, []

    def fails(path: Path) -> None:
        calls.append(path)
        if (path / commits.COMMIT).exists():
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(disk, "sync_folder", fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(one().fill(), tmp_path, 2, keep=1)
    assert calls and find_commit(tmp_path, tell=lambda _: None).path == old
