"""Lists of samples that could not be used, over resumes and other numbers of replicas."""

import errno
import os
from pathlib import Path

import pytest

from tests.train.toy_layouts import one
from train.checkpoint.entries import ALONE
from train.checkpoint.load import find_commit
from train.checkpoint.rewrite import rewrite_commit
from train.checkpoint.run import RunCheckpoints
from train.quarantine import Quarantine, go_on_from


def save(run: Path, step: int, records: list[dict]) -> None:
    toy = one().fill()
    made = RunCheckpoints(run, toy.parameters, toy.boxes, toy, writer=ALONE, frozen=(), keep=9, commit_seconds=30.0)  # type: ignore[arg-type]
    made.save(step, {}, "", records)
    made.finish()


def test_a_list_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    Quarantine(tmp_path, 0).keep({"sample": 1})
    Quarantine(tmp_path, 1).keep({"sample": 2})
    save(tmp_path, 5, [*Quarantine(tmp_path, 0).records, *Quarantine(tmp_path, 1).records])
    Quarantine(tmp_path, 0).keep({"sample": 3})  # of a step after the checkpoint, which will be done again
    with (tmp_path / "quarantine_1.jsonl").open("a") as file:
        file.write('{"sample": 4')  # the host was lost
    assert Quarantine(tmp_path, 1).records == [{"sample": 2}]
    go_on_from(tmp_path, find_commit(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("quarantine_*")) == ["quarantine_0.jsonl"]
    assert Quarantine(tmp_path, 0).records == [{"sample": 1}, {"sample": 2}]


def test_a_list_that_lies_with_another_checkpoint_is_found_there(tmp_path: Path) -> None:
    Quarantine(tmp_path, 0).keep({"sample": 1})
    save(tmp_path, 5, [*Quarantine(tmp_path, 0).records])
    rewrite_commit(find_commit(tmp_path), {}, {"repaired": True})
    commit = find_commit(tmp_path)
    assert commit.state["repaired"] and not (commit.path / "quarantine.jsonl").exists()
    go_on_from(tmp_path, commit)
    assert Quarantine(tmp_path, 0).records == [{"sample": 1}]


def test_a_new_run_begins_without(tmp_path: Path) -> None:
    Quarantine(tmp_path, 0).keep({"sample": 1})
    go_on_from(tmp_path, None)
    assert Quarantine(tmp_path, 0).records == []
    save(tmp_path, 1, [])
    go_on_from(tmp_path, find_commit(tmp_path))
    assert not list(tmp_path.glob("quarantine_*"))


def test_a_full_disk_ends_no_run_and_no_record_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Quarantine(tmp_path / "run", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        kept.keep({"sample": 1})
    assert kept.records == [{"sample": 1}] and Quarantine(tmp_path / "run", 0).records == []
    kept.keep({"sample": 2})
    assert Quarantine(tmp_path / "run", 0).records == kept.records == [{"sample": 1}, {"sample": 2}]


def test_a_folder_that_cannot_be_made_ends_no_run_either(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in its place")
    kept = Quarantine(tmp_path / "other", 0)
    kept._lines._path = tmp_path / "run" / "quarantine_0.jsonl"
    kept.keep({"sample": 1})
    kept.close()
    assert kept.records == [{"sample": 1}]
