"""Checkpoints uploaded through the real oss2 client to the loopback service, with faults, and fetched from there."""

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.child import end_child, start_child
from data.errors import StoreError
from data.store.config import OssConfig
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService
from tests.launch.commands import end
from tests.train.uploaded import ADDRESS, SMALL_BUDGET, content, frozen_of, job_of, make_commit, oss_of, remote_at
from train.checkpoint import commits, disk, pruning, upload
from train.checkpoint.fetch import _see, find_or_fetch
from train.checkpoint.remote import fetch_newest, noted
from train.checkpoint.upload import Sent
from train.ready import check_upload_folder
from train.resolve import compose, to_yaml

LANGUAGE, VISION = "language.00000.safetensors", "vision.00000.safetensors"


def sent(path: Path, oss: OssConfig, **options: Any) -> Sent:
    done = upload.run(job_of(path, oss, **options))
    assert done.left is None
    return done


def fetch(oss: OssConfig, run: Path, told: list[str] | None = None) -> Path:
    return fetch_newest(remote_at(oss), run, (told if told is not None else []).append, 5.0)


def written(service: OssService) -> list[str]:
    """Keys that were put, in order; parts and retries once."""
    keys = [each["key"] for each in service.state()["log"] if each["kind"] == "PUT object" and each["status"] == 200]
    return list(dict.fromkeys(keys))


def test_an_upload_comes_back_as_it_was_with_what_it_refers_to(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    run, back = tmp_path / "run", tmp_path / "back"
    first = make_commit(run, 10)
    second = make_commit(run, 20, frozen_of(first))
    done = sent(second, oss, budget=SMALL_BUDGET)
    assert done.fault is None and done.files == 6
    order = written(service)
    assert order[-2:] == [f"run/{second.name}/files.json", f"run/{second.name}/COMMIT"] and len(order) == 9
    assert order[0] == "run/run.json"
    assert f"run/{first.name}/{VISION}" in order, "a file that is referred to goes where it belongs"
    assert service.counts["PUT object served"] == 8 + 3, "one file takes three parts"

    path = fetch(oss, back)
    assert path == back / "checkpoints" / second.name and not commits.problems(path)
    assert [attempt.path for attempt in commits.attempts(back)] == [path]
    own = {name: data for name, data in content(back).items() if not name.endswith(commits.PRUNED)}
    assert own.items() <= content(run).items() and len(own) == 8
    pruning.prune(back, 1, path)
    assert not commits.problems(path), "what it refers to is kept as pruning keeps it"


def test_what_is_there_is_not_sent_again(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    first = make_commit(tmp_path, 10)
    sent(first, oss)
    second = make_commit(tmp_path, 20, frozen_of(first))
    done = sent(second, oss)
    assert done.files == 5, "the frozen part is there"
    again = sent(second, oss)
    assert (again.files, again.nbytes) == (0, 0)


def test_a_bucket_keeps_what_the_recipe_keeps(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    paths = {10: make_commit(tmp_path, 10)}
    sent(paths[10], oss, keep=1, keep_every=20)
    for step in (20, 30, 40, 50):
        paths[step] = make_commit(tmp_path, step, frozen_of(paths[10]))
        service.put(f"run/step_{step - 5:08d}.00000000/{LANGUAGE}", b"of a process that was killed")
        sent(paths[step], oss, keep=1, keep_every=20)
    sealed = [name.split("/")[1] for name in service.names() if name.endswith("/COMMIT")]
    assert sealed == [paths[step].name for step in (20, 40, 50)]
    left = [name for name in service.names() if name.split("/")[1] not in (*sealed, "run.json")]
    assert left == [f"run/{paths[10].name}/{VISION}"], "it is referred to"
    deleted = [each["key"] for each in service.state()["log"] if each["kind"] == "DELETE object"]
    gone = [name for name in deleted if paths[30].name in name]
    assert gone[0].endswith("/COMMIT") and len(gone) == 7
    assert not commits.problems(fetch(oss, tmp_path / "back"))


FAULTS: dict[str, list[dict[str, Any]]] = {
    "5xx": [{"kind": "error", "method": "PUT", "status": 500, "code": "InternalError", "times": 4, "every": 2}],
    "throttled": [{"kind": "error", "method": "PUT", "code": "UploadTrafficRateLimitExceeded", "times": 3}],
    "cut": [{"kind": "cut", "method": "PUT", "times": 4, "every": 2}],
    "a lost answer": [{"kind": "silence", "method": "PUT", "seconds": 2.0, "skip": 2}],
    "a wrong CRC told": [{"kind": "other crc", "method": "PUT", "times": 4, "every": 2}],
    "other bytes stored": [{"kind": "flip sent", "method": "PUT", "times": 4, "every": 2, "at": 7}],
    "the end of parts lost": [{"kind": "silence", "method": "POST", "skip": 1, "seconds": 2.0}],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_the_part_that_it_strikes(
    fault: str, service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    path = make_commit(tmp_path / "run", 10)
    service.plan(*FAULTS[fault])
    done = sent(path, oss, budget=SMALL_BUDGET * 2, keep=1)
    state = service.state()
    assert done.fault is None and sum(each["done"] for each in state["faults"]) > 0
    assert sum(each["kind"] == "POST object" for each in state["log"]) <= 3, "no file was begun anew"
    assert not commits.problems(fetch(oss, tmp_path / "back")) and service.unfinished() == []
    assert content(tmp_path / "back") == content(tmp_path / "run")


def test_the_budget_is_kept(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    path = make_commit(tmp_path, 10)
    done = sent(path, oss, budget=SMALL_BUDGET)
    assert done.seconds > 0.8 * (done.nbytes - SMALL_BUDGET) / SMALL_BUDGET, "the first second's part needs no waiting"


def test_an_upload_that_is_given_up_counts_for_nothing(service: OssService, tmp_path: Path) -> None:
    oss, hasty = oss_of(service, tmp_path), oss_of(service, tmp_path, deadline_seconds=1.0)
    first, second = make_commit(tmp_path / "run", 10), make_commit(tmp_path / "run", 20)
    sent(first, oss)
    service.plan({"kind": "error", "method": "PUT", "key": LANGUAGE, "status": 500, "times": -1})
    done = upload.run(job_of(second, hasty))
    assert done.fault is not None and not done.is_over and "status 500" in done.fault and SECRET not in done.fault
    assert f"run/{second.name}/COMMIT" not in service.names() and service.unfinished() == []
    assert fetch(oss, tmp_path / "back").name == first.name
    service.keys({ACCESS: {"secret": "another"}})
    refused = upload.run(job_of(second, hasty))
    assert refused.fault is not None and "SignatureDoesNotMatch" in refused.fault and SECRET not in refused.fault


@pytest.mark.parametrize("name", [LANGUAGE, "state.json"])
def test_bytes_that_the_disk_lost_are_not_uploaded(
    name: str, service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    path = make_commit(tmp_path, 10)
    raw = bytearray((path / name).read_bytes())
    raw[3] ^= 1
    (path / name).write_bytes(raw)
    done = sent(path, oss, budget=SMALL_BUDGET * 2)
    assert done.is_over and done.fault is not None and "was written with" in done.fault
    assert not [key for key in service.names() if key.endswith((name, "COMMIT"))] and service.unfinished() == []


def test_killed_between_two_files_it_goes_on_with_the_rest(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    first, second = make_commit(tmp_path / "run", 10), make_commit(tmp_path / "run", 20)
    sent(first, oss)
    service.forget()
    job = job_of(second, oss, budget=SMALL_BUDGET * 2)
    child = start_child("train.checkpoint.upload", job.to_json())
    try:
        # The budget lets a file or two and some parts through in the first second.
        _wait_until(lambda: service.counts.get("PUT object served", 0) >= 2, child)
        child.kill()
    finally:
        end_child(child)
    there = service.names()
    assert f"run/{second.name}/COMMIT" not in there
    assert fetch(oss, tmp_path / "back").name == first.name, "a part of a checkpoint counts for nothing"
    done = sent(second, oss)
    finished = [name for name in there if name.startswith(f"run/{second.name}/")]
    assert done.fault is None and done.files == 6 - len(finished) and service.unfinished() == []
    assert fetch(oss, tmp_path / "after").name == second.name


def _wait_until(holds: Any, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.02)


DAMAGES = ("bit", "short", "absent", "list", "unsealed")


def damage(service: OssService, folder: str, how: str) -> str:
    """Do it, and what must be said of it."""
    name = f"run/{folder}/{LANGUAGE}"
    raw = bytearray(service.get(name))
    if how == "bit":
        raw[-9] ^= 64
        service.put(name, bytes(raw))
        return "has size 600000 and crc32c"
    if how == "short":
        service.put(name, bytes(raw[:-1]))
        return "has size 599999"
    if how == "absent":
        service.delete(name)
        return "there is no such object"
    if how == "list":
        service.put(f"run/{folder}/files.json", b"{}")
        return "SHA-256"
    service.delete(f"run/{folder}/COMMIT")
    return "it was never finished"


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_is_passed_over_with_the_reason(
    how: str, service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    first, second = make_commit(tmp_path / "run", 10), make_commit(tmp_path / "run", 20)
    for path in (first, second):
        sent(path, oss)
    why = damage(service, second.name, how)
    told: list[str] = []
    assert fetch(oss, tmp_path / "back", told).name == first.name
    passed = [line for line in told if line.startswith("passing over")]
    assert len(passed) == 1 and f"{ADDRESS}/{second.name}" in passed[0] and why in passed[0]
    assert [attempt.path.name for attempt in commits.attempts(tmp_path / "back")] == [first.name]
    damage(service, first.name, how)
    with pytest.raises(ValueError, match="has no checkpoint that can be used"):
        fetch(oss, tmp_path / "none")


def test_of_a_damaged_one_only_what_is_damaged_is_fetched(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    path = make_commit(tmp_path, 10)
    before = content(tmp_path)
    sent(path, oss)
    (path / "state.json").write_bytes(b"lost")
    (path / VISION).unlink()
    service.forget()
    assert fetch(oss, tmp_path) == path and content(tmp_path) == before
    asked = {each["key"] for each in service.state()["log"] if each["kind"] == "GET object"}
    assert asked == {f"run/{path.name}/{name}" for name in ("files.json", "COMMIT", "state.json", VISION)} | {
        "run/run.json"
    }
    service.forget()
    assert fetch(oss, tmp_path) == path and service.state()["log"] == [], "what is whole here is not looked for"


def test_fetching_goes_on_where_it_was_killed_and_needs_room(
    service: OssService, oss: OssConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_commit(tmp_path / "run", 10)
    sent(path, oss)
    back = tmp_path / "back"
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda _: 1000)
        with pytest.raises(ValueError, match=r"back/checkpoints has 1e-06 GB left, the checkpoint takes 0.00064 GB"):
            fetch(oss, back)
    half = back / "checkpoints" / path.name
    half.mkdir(parents=True)
    for name in ("state.json", VISION):
        (half / name).write_bytes((path / name).read_bytes())
    (half / f"{LANGUAGE}.part").write_bytes(b"half of it")
    assert fetch(oss, back) == half and content(back) == content(tmp_path / "run")


def test_nothing_secret_is_noted(service: OssService, oss: OssConfig, tmp_path: Path) -> None:
    remote_at(oss).write_note(tmp_path)
    found = noted(tmp_path)
    assert found is not None and noted(tmp_path / "none") is None
    assert found.oss.limiter.folder is None, "a folder of this machine"
    assert replace(found, oss=replace(found.oss, limiter=oss.limiter)) == remote_at(oss)
    job = job_of(make_commit(tmp_path, 10), oss).to_json()
    for text in ((tmp_path / "upload.json").read_text(), job, json.dumps(service.state()["counts"])):
        assert SECRET not in text and ACCESS not in text
    with pytest.raises(StoreError, match="SignatureDoesNotMatch"):
        service.keys({ACCESS: {"secret": "another"}})
        fetch(oss, tmp_path / "back")


def test_a_new_run_does_not_upload_among_the_checkpoints_of_another(
    service: OssService, oss: OssConfig, tmp_path: Path
) -> None:
    run = compose("quickstart_stage2")
    checkpoint = replace(run.checkpoint, upload=ADDRESS)
    run = replace(run, run_dir=str(tmp_path / "new"), checkpoint=checkpoint, data=replace(run.data, oss=oss))
    check_upload_folder(run)
    path = make_commit(tmp_path / "other", 10)
    sent(path, oss)
    with pytest.raises(
        ValueError, match=f"{ADDRESS} already holds 1 checkpoint.*{path.name}.*triptych resume {ADDRESS}"
    ):
        check_upload_folder(run)
    check_upload_folder(replace(run, resume=True))


def test_what_a_run_has_not_uploaded_is_uploaded_by_hand_and_comes_back(
    service: OssService, oss: OssConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = compose("quickstart_stage2")
    checkpoint = replace(run.checkpoint, upload=ADDRESS)
    made = make_commit(
        tmp_path / "run", 10, recipe=to_yaml(replace(run, checkpoint=checkpoint, data=replace(run.data, oss=oss)))
    )
    assert end("checkpoint", "upload", tmp_path / "run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == 6 and told["fault"] is None
    reach = ["--oss", f"endpoint={service.endpoint}", f"limiter.folder={tmp_path}/limits"]
    assert end("checkpoint", "download", ADDRESS, tmp_path / "back", *reach) == 0
    assert capsys.readouterr().out == f"{tmp_path}/back/checkpoints/{made.name} is whole\n"
    assert end("resume", ADDRESS, *reach) == 2 and "--run-dir RUN" in capsys.readouterr().err
    # The folder knows from now on where its checkpoints are, should they go again.
    shutil.rmtree(tmp_path / "back" / "checkpoints")
    assert find_or_fetch(tmp_path / "back", None, 5.0, lambda _: None).path.name == made.name
    with pytest.raises(ValueError, match="all nodes share"):
        _see(tmp_path / "another node" / made.name)
