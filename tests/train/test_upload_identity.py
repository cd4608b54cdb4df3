"""Which run a prefix belongs to, and which of its checkpoints the run is at."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from data.store.config import OssConfig
from launch.checkpoints.transfers import fetched
from tests.harness.oss_service import OssService
from tests.launch.commands import end
from tests.train.uploaded import ADDRESS, content, frozen_of, job_of, make_commit, remote_at
from train.checkpoint import commits, identity, upload
from train.checkpoint.remote import fetch_newest, noted
from train.checkpoint.upload import Sent
from train.config import RunConfig
from train.ready import check_upload_folder
from train.resolve import compose, to_yaml

OTHER = "0123456789abcdef"


def sent(path: Path, oss: OssConfig, **options: Any) -> Sent:
    return upload.run(job_of(path, oss, **options))


def recipe(run_dir: Path, oss: OssConfig, resume: bool = False) -> RunConfig:
    run = compose("quickstart_stage2")
    checkpoint = replace(run.checkpoint, upload=ADDRESS)
    return replace(run, run_dir=str(run_dir), resume=resume, checkpoint=checkpoint, data=replace(run.data, oss=oss))


def sealed(service: OssService) -> list[str]:
    return [name.split("/")[1] for name in service.names() if name.endswith("/COMMIT")]


def fetch(oss: OssConfig, run: Path, **options: Any) -> tuple[Path, list[str]]:
    told: list[str] = []
    return fetch_newest(remote_at(oss), run, told.append, 5.0, **options), told


def test_a_run_neither_uploads_nor_prunes_among_the_checkpoints_of_another(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for step in (10, 20):
        assert sent(make_commit(theirs, step), oss).fault is None
    before = service.names()
    path = make_commit(ours, 500)
    refused = sent(path, oss, keep=1)
    ids = [identity.settled_id(run) for run in (theirs, ours)]
    assert refused.is_over and refused.fault is not None and service.names() == before
    for part in (ADDRESS, *ids, str(ours), "another prefix", f"triptych resume {ADDRESS}"):
        assert part in refused.fault
    with pytest.raises(identity.Taken, match=f"{ids[0]}.*{ids[1]}"):
        check_upload_folder(recipe(ours, oss, resume=True))
    with pytest.raises(identity.Taken):
        fetch(oss, ours, later=True)
    check_upload_folder(recipe(theirs, oss, resume=True))


def test_a_run_goes_on_where_it_was_fetched_to(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    sent(make_commit(tmp_path / "run", 10), oss)
    back = tmp_path / "back"
    check_upload_folder(recipe(back, oss, resume=True))
    fetch(oss, back)
    assert identity.id_of(back) == identity.id_of(tmp_path / "run")
    assert sent(make_commit(back, 20), oss).fault is None and len(sealed(service)) == 2


def test_the_id_is_in_every_checkpoint(tmp_path: Path) -> None:
    path = make_commit(tmp_path, 10, run=OTHER)
    assert identity.settled_id(tmp_path) == OTHER and (tmp_path / "run.json").exists()
    assert path.exists() and identity.settled_id(tmp_path / "new") == identity.settled_id(tmp_path / "new") != OTHER


def test_a_run_that_begins_anew_where_all_checkpoints_were_deleted_is_another(tmp_path: Path) -> None:
    path = make_commit(tmp_path, 10)
    first = identity.settled_id(tmp_path)
    (tmp_path / "saves.jsonl").write_text('{"step": 5, "fault": "full"}\n{"step": 10, "fault": null}\n')
    assert identity.settled_id(tmp_path) == first
    shutil.rmtree(path.parent)
    assert identity.begun_id(tmp_path) is None and identity.id_of(tmp_path) == first, "as one that is fetched goes on"
    second = identity.settled_id(tmp_path)
    assert second not in (None, first)
    (tmp_path / "saves.jsonl").write_text('{"step": 5, "fault": "full"}\n')  # a start that has saved nothing yet
    assert identity.settled_id(tmp_path) == second


def test_a_prefix_of_before_runs_had_ids_is_known_by_names(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    """And a start that was killed between its claim and its first checkpoint keeps the prefix."""
    first = make_commit(tmp_path / "run", 10)
    sent(first, oss)
    service.delete("run/run.json")
    (tmp_path / "run" / "run.json").unlink()
    check_upload_folder(recipe(tmp_path / "run", oss, resume=True))
    stranger = make_commit(tmp_path / "stranger", 20)
    with pytest.raises(identity.Taken, match="a run without an id"):
        check_upload_folder(recipe(stranger.parent.parent, oss, resume=True))
    assert "a run without an id" in str(sent(stranger, oss).fault)
    assert sent(make_commit(tmp_path / "run", 20), oss).fault is None
    for name in service.names():
        if name != "run/run.json":
            service.delete(name)
    check_upload_folder(recipe(tmp_path / "run", oss))
    with pytest.raises(identity.Taken):
        check_upload_folder(recipe(tmp_path / "new", oss))


@pytest.mark.parametrize("fault", [{"kind": "silence", "seconds": 2.0}, {"kind": "flip sent", "at": 3}])
def test_a_claim_outlives_the_network(
    fault: dict[str, Any], service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    path = make_commit(tmp_path, 10)
    service.plan({"method": "PUT", "key": "run.json", "times": 1, **fault})
    assert sent(path, oss).fault is None and sum(each["done"] for each in service.state()["faults"]) == 1
    assert json.loads(service.get("run/run.json")) == {"run": identity.id_of(tmp_path)}


def test_of_two_runs_that_claim_at_once_one_has_it(
    service: OssService, oss: OssConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_commit(tmp_path, 10)
    look = identity.check_owner

    def look_and_be_late(*arguments: Any) -> str | None:
        found = look(*arguments)
        service.put("run/run.json", b'{"run": "%s"}' % OTHER.encode())
        return found

    monkeypatch.setattr(identity, "check_owner", look_and_be_late)
    assert OTHER in str(sent(path, oss).fault) and service.names() == ["run/run.json"]


@pytest.mark.parametrize("raw", [b"", b"[1]", b'{"run": "../x"}', b"[" * 100_000])
def test_an_id_that_is_none_is_named(raw: bytes, service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    service.put("run/run.json", raw)
    path = make_commit(tmp_path, 10)
    assert f"{ADDRESS}/run.json does not hold the id of a run" in str(sent(path, oss).fault)
    (tmp_path / "run.json").write_bytes(raw)
    with pytest.raises(ValueError, match=r"run\.json does not hold the id of a run; delete it"):
        identity.id_of(tmp_path)


def test_a_run_that_resumes_trains_though_its_prefix_cannot_be_seen(
    service: OssService, oss: OssConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_commit(tmp_path, 10)
    service.keys({})
    check_upload_folder(recipe(tmp_path, oss, resume=True))
    assert f"{ADDRESS} could not be looked at" in capsys.readouterr().err
    with pytest.raises(OSError, match="refuses the keys"):
        check_upload_folder(recipe(tmp_path / "new", oss))


def test_pruning_goes_on_beside_one_that_does_not_say_what_it_has(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = make_commit(run, 10)
    second = make_commit(run, 20, frozen_of(first))
    for path in (first, second):
        sent(path, oss, keep_every=10)
    service.put(f"run/{second.name}/files.json", b"{}")
    for step in (31, 32, 33):
        done = sent(make_commit(run, step), oss, keep=1)
        assert done.fault is None and done.left is not None and second.name in done.left
    assert [commits.step_of(name) for name in sealed(service)] == [20, 33]
    left = {name.split("/")[1] for name in service.names()} - {"run.json"}
    assert sorted(commits.step_of(name) or 0 for name in left) == [10, 20, 33], "what it may refer to stays"
    service.delete(f"run/{second.name}/files.json")
    assert "there is no such object" in str(sent(make_commit(run, 34), oss, keep=1).left)
    sent(second, oss)
    assert sent(make_commit(run, 35), oss, keep=1).left is None
    assert [commits.step_of(name) for name in sealed(service)] == [35]
    assert {name.split("/")[1] for name in service.names()} - {"run.json"} == set(sealed(service))


def test_what_a_run_has_left_behind_is_not_gone_on_from(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    paths = {step: make_commit(run, step) for step in (10, 20, 30)}
    for path in paths.values():
        sent(path, oss, keep=3)
    sent(paths[20], oss, keep=3)  # as a start that goes on from it does
    assert fetch(oss, tmp_path / "one")[0].name == paths[20].name
    later = make_commit(run, 25)
    sent(later, oss, keep=2)
    assert [commits.step_of(name) for name in sealed(service)] == [20, 25, 30], "it counts for nothing, and stays"
    assert fetch(oss, tmp_path / "two")[0].name == later.name
    sent(make_commit(run, 35), oss, keep=2)
    assert [commits.step_of(name) for name in sealed(service)] == [25, 35]
    assert not [name for name in service.names() if "00000030" in name or "00000020" in name]


def test_what_was_left_behind_and_is_gone_on_from_is_the_newest_again(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    paths = {step: make_commit(tmp_path / "run", step) for step in (10, 20)}
    for step in (10, 20, 10, 20):
        sent(paths[step], oss)
    assert fetch(oss, tmp_path / "back")[0].name == paths[20].name
    assert not [name for name in service.names() if name.endswith("LEFT_BEHIND")]


def test_of_a_folder_and_a_bucket_the_later_step_is_taken_and_said(
    service: OssService, oss: OssConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, back = tmp_path / "run", tmp_path / "back"
    first, second = make_commit(run, 10), make_commit(run, 20)
    sent(first, oss)
    fetched(ADDRESS, back, oss)
    sent(second, oss)
    capsys.readouterr()
    assert fetched(ADDRESS, back, oss).data["path"] == str(back / "checkpoints" / second.name)
    told = capsys.readouterr().err
    assert f"taking {second.name} of {ADDRESS}, which is of a later step than {first.name} here" in told
    third = make_commit(back, 30)
    assert fetched(ADDRESS, back, oss).data["path"] == str(third)
    assert f"taking {third}, which is whole: {ADDRESS} has none" in capsys.readouterr().err


def test_a_list_in_a_bucket_does_not_write_over_another_checkpoint_that_is_here(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    here, victim = make_commit(tmp_path / "run", 10), make_commit(tmp_path / "run", 20)
    sent(here, oss)
    before = content(tmp_path / "run")
    listed = json.loads(service.get(f"run/{here.name}/files.json"))
    listed["files"]["language.00000.safetensors"]["folder"] = victim.name
    raw = json.dumps(listed).encode()
    service.put(f"run/{here.name}/files.json", raw)
    service.put(f"run/{here.name}/COMMIT", hashlib.sha256(raw).hexdigest().encode())
    service.put(f"run/{victim.name}/language.00000.safetensors", service.get(f"run/{here.name}/state.json"))
    (here / "COMMIT").unlink()
    (victim / "state.json").write_bytes(b"damaged, so that the bucket is asked")
    with pytest.raises(ValueError, match=f"refers to {victim.name}/language.*another file in that checkpoint"):
        fetch(oss, tmp_path / "run")
    language = f"{victim.name}/language.00000.safetensors"
    assert content(tmp_path / "run")[language] == before[language]


def test_fetching_stops_when_nobody_waits_and_goes_on_from_there(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    path = make_commit(tmp_path / "run", 10)
    sent(path, oss)
    left = iter(range(9))

    def check() -> None:
        if next(left, None) is None:
            raise TimeoutError("too late")

    back = tmp_path / "back"
    with pytest.raises(TimeoutError, match="too late"):
        fetch(oss, back, check=check)
    there = content(back)
    assert there and not (back / "checkpoints" / path.name / "COMMIT").exists()
    service.forget()
    fetch(oss, back)
    asked = {each["key"] for each in service.state()["log"] if each["kind"] == "GET object"}
    assert content(back) == content(tmp_path / "run") and len(asked) < 2 + 6 + 1


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda told: [told],
    "no address": lambda told: {"oss": told["oss"]},
    "an address of another kind": lambda told: told | {"address": 5},
    "a file": lambda told: told | {"address": "file:///etc"},
    "a region that is a number": lambda told: told | {"oss": told["oss"] | {"region": 5}},
    "a time that is a word": lambda told: told | {"oss": told["oss"] | {"read_seconds": "soon"}},
    "an unknown key": lambda told: told | {"oss": told["oss"] | {"secret": "x"}},
    "no limiter": lambda told: told | {"oss": told["oss"] | {"limiter": None}},
    "a value that cannot be": lambda told: told | {"oss": told["oss"] | {"connections": 0}},
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_note_that_cannot_be_is_named_with_its_cure(how: str, tmp_path: Path, capsys: Any) -> None:
    told = {"address": ADDRESS, "oss": asdict(OssConfig())}
    (tmp_path / "upload.json").write_text(json.dumps(told))
    assert noted(tmp_path) is not None
    (tmp_path / "upload.json").write_text(json.dumps(SPOILED[how](told)))
    with pytest.raises(ValueError, match=r"upload\.json does not say where.*delete it.*triptych resume oss://"):
        noted(tmp_path)
    assert end("resume", tmp_path) == 2 and "upload.json does not say where" in capsys.readouterr().err


def test_weights_alone_do_not_go_among_the_checkpoints_they_come_from(
    service: OssService, oss: OssConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `average` leaves them: the recipe is that of the run, and names where that one uploads to."""
    text = to_yaml(recipe(tmp_path / "run", oss))
    sent(make_commit(tmp_path / "run", 10, recipe=text), oss)
    before = service.names()
    make_commit(tmp_path / "mean", 0, recipe=text)
    assert end("checkpoint", "upload", tmp_path / "mean") == 1
    assert "set checkpoint.upload to another prefix" in capsys.readouterr().out and service.names() == before
