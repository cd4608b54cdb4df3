"""Lists of samples that could not be used, over resumes and other numbers of replicas."""

from pathlib import Path

from tests.train.toy_layouts import one
from train import quarantine
from train.checkpoint.entries import ALONE
from train.checkpoint.load import find_commit
from train.checkpoint.rewrite import rewrite_commit
from train.checkpoint.run import RunCheckpoints


def save(run: Path, step: int, records: list[dict]) -> None:
    toy = one().fill()
    made = RunCheckpoints(run, toy.parameters, toy.boxes, toy, writer=ALONE, frozen=(), keep=9, commit_seconds=30.0)  # type: ignore[arg-type]
    made.save(step, {}, "", records)
    made.finish()


def test_a_list_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    quarantine.keeper(tmp_path, 0)({"sample": 1})
    quarantine.keeper(tmp_path, 1)({"sample": 2})
    save(tmp_path, 5, [*quarantine.records(tmp_path, 0), *quarantine.records(tmp_path, 1)])
    quarantine.keeper(tmp_path, 0)({"sample": 3})  # of a step after the checkpoint, which will be done again
    with (tmp_path / "quarantine_1.jsonl").open("a") as file:
        file.write('{"sample": 4')  # the host was lost
    assert quarantine.records(tmp_path, 1) == [{"sample": 2}]
    quarantine.go_on_from(tmp_path, find_commit(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("quarantine_*")) == ["quarantine_0.jsonl"]
    assert quarantine.records(tmp_path, 0) == [{"sample": 1}, {"sample": 2}]


def test_a_list_that_lies_with_another_checkpoint_is_found_there(tmp_path: Path) -> None:
    quarantine.keeper(tmp_path, 0)({"sample": 1})
    save(tmp_path, 5, [*quarantine.records(tmp_path, 0)])
    rewrite_commit(find_commit(tmp_path), {}, {"repaired": True})
    commit = find_commit(tmp_path)
    assert commit.state["repaired"] and not (commit.path / "quarantine.jsonl").exists()
    quarantine.go_on_from(tmp_path, commit)
    assert quarantine.records(tmp_path, 0) == [{"sample": 1}]


def test_a_new_run_begins_without(tmp_path: Path) -> None:
    quarantine.keeper(tmp_path, 0)({"sample": 1})
    quarantine.go_on_from(tmp_path, None)
    assert quarantine.records(tmp_path, 0) == []
    save(tmp_path, 1, [])
    quarantine.go_on_from(tmp_path, find_commit(tmp_path))
    assert not list(tmp_path.glob("quarantine_*"))
