"""Checkpoints that a tool writes: whole, or not there."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from train.checkpoint import commits, disk, rewrite
from train.errors import CheckpointError

NAME = "merger.fc1.weight"


class Like:
    """One tensor of 8 GB, of which nothing is written here."""

    def shape(self, name: str) -> tuple[int, ...]:
        return 1000, 1000, 1000

    def dtype(self, name: str) -> torch.dtype:
        return torch.float64


def write(run_dir: Path, make: Callable[[str], torch.Tensor]) -> Path:
    return rewrite.write_whole_commit(run_dir, 0, Like(), [NAME], make, told={}, recipe="seed: 1\n")


def full(name: str) -> torch.Tensor:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_has_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 7 * 10**9)
    asked: list[str] = []
    with pytest.raises(CheckpointError, match=r"it takes 8 GB, and the disk of .* has 7 GB left"):
        write(tmp_path / "run", asked.append)  # type: ignore[arg-type]
    assert not asked and not (tmp_path / "run").exists()


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10**12)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(tmp_path / "run", full)
    assert not (tmp_path / "run").exists()
    (tmp_path / "kept").mkdir()  # by somebody else
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "kept", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not list((tmp_path / "kept").iterdir())


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10**12)
    monkeypatch.setattr(disk, "remove_folder", lambda path: (_ for _ in ()).throw(OSError("the disk is gone")))
    with pytest.raises(CheckpointError, match=r"No space left.*is left in .*step_00000000.*the disk is gone"):
        write(tmp_path, full)
    assert not any(attempt.sealed for attempt in commits.attempts(tmp_path))
