"""`triptych pack` and `triptych index`: what they print, how they end, and the three commands of docs/data.md."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.index.build import open_index
from tests.data.conftest import picture_bytes, train_tokenizer
from tests.harness.index_sources import make_source
from tests.launch.commands import end

ROOT = Path(__file__).resolve().parents[2]
NUM = 36


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """What a user has: a LLaVA-style JSON, its pictures, and a tokenizer."""
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    records = []
    for number in range(NUM):
        name = f"deep/{number}.jpg"
        (tmp_path / "pictures" / name).write_bytes(picture_bytes(40 + number, 60, number, "JPEG"))
        said = [("human", "<image>\nWhat is this?"), ("gpt", f"the digit {number}")]
        turns = [{"from": role, "value": text} for role, text in said]
        records.append({"id": str(number), "image": name, "conversations": turns})
    (tmp_path / "my.json").write_text(json.dumps(records))
    train_tokenizer(tmp_path / "tokenizer")
    return tmp_path


def test_the_three_commands_of_the_documentation_lead_to_a_running_stage_3(given: Path) -> None:
    page = (ROOT / "docs" / "data.md").read_text("utf-8")
    block = re.search(r"```bash\n(.*?)```", page, re.DOTALL)
    assert block is not None
    commands = block[1]
    assert len(commands.replace("\\\n", "").splitlines()) == 3
    for name in ("my.json", "pictures", "datasets/mine", "runs/mine"):
        assert name in commands
        commands = commands.replace(name, str(given / name))
    # A tokenizer of 431 tokens in place of Qwen2's, and as small a head.
    commands = commands.replace("pretrained/qwen2-vl", str(given / "tokenizer")).replace("151936", "512")
    python = shlex.quote(sys.executable)
    script = f'set -e\ntriptych() {{ {python} -m launch.cli "$@"; }}\n{commands}'
    environment = os.environ | {"PYTHON": sys.executable, "NPROC_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert f"{NUM} of {NUM} samples are in" in ended.stdout
    steps = [json.loads(line) for line in (given / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [(step["stage"], step["step"]) for step in steps] == [("stage3", 1), ("stage3", 2)]
    assert all(step["samples"] > 0 and step["targets"] > 0 and step["step_patches"] > 0 for step in steps)


def test_what_does_not_map_is_said_and_shown_in_the_exit_code(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = json.loads((given / "my.json").read_text())
    records[3]["image"] = "../my.json"
    records[5]["weight"] = 2
    (given / "my.json").write_text(json.dumps(records))
    arguments = ["pack", str(given / "my.json"), "--media", str(given / "pictures"), "--output", str(given / "out")]
    assert end(*arguments) == 1
    assert f"{NUM - 1} of {NUM} samples are in {given / 'out'}; 2 thing(s) did not map" in capsys.readouterr().out
    told = [json.loads(line) for line in (given / "out" / "pack_report.jsonl").read_text().splitlines()]
    assert [(line["sample"], line["field"], line["left_out"]) for line in told] == [
        (3, "image", True),
        (5, "weight", False),
    ]
    assert end(*arguments) == 2
    assert "is in use" in capsys.readouterr().err


def test_an_index_elsewhere_is_checked_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, shards=2, samples_per_shard=3)
    arguments = ["index", str(tmp_path / "source"), "--tokenizer", str(tmp_path / "tokenizer")]
    arguments += ["--output", str(tmp_path / "elsewhere"), "--readers", "2"]
    assert end(*arguments) == 0
    assert "2 of 2 shards, 6 samples" in capsys.readouterr().out
    assert end(*arguments, "--check") == 0
    assert "6 samples in 2 shards are as indexed" in capsys.readouterr().out
    assert len(open_index(tmp_path / "source", tmp_path / "elsewhere")) == 6
    shard = tmp_path / "source" / "s-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    other = train_tokenizer(tmp_path / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    arguments[3] = str(other)
    assert end(*arguments, "--check") == 1
    told = capsys.readouterr().out
    assert "its tokenizer has digest" in told and "shard s-000001.tar has digest" in told and "sample 3 at" in told


def test_what_is_wrong_with_a_source_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path, shards=2, samples_per_shard=3)
    shard = tmp_path / "source" / "s-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    arguments = ["index", str(tmp_path / "source"), "--tokenizer", str(tmp_path / "tokenizer"), "--readers", "1"]
    assert end(*arguments) == 2
    told = capsys.readouterr().err
    assert "shard s-000000.tar (3000 bytes)" in told and "--skip-damaged-shards" in told
    assert end(*arguments, "--skip-damaged-shards") == 0
    assert "left out 1 damaged shard(s), listed in index.json" in capsys.readouterr().out
    assert end(*arguments, "--format", "zip") == 2
    assert "no format 'zip'; known are triptych, webdataset" in capsys.readouterr().err
    assert end("index", "oss://bucket/x", "--tokenizer", str(tmp_path / "tokenizer")) == 2
    assert "--output FOLDER" in capsys.readouterr().err


def interrupt(command: list[str], begun: Callable[[], bool]) -> tuple[int, str]:
    """(exit code, stderr) of a command that gets Ctrl-C once it has begun."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    deadline = time.monotonic() + 200
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=200)
    return process.returncode, told


STUCK = """
import pathlib, time
replace = pathlib.Path.replace
def replace_one(self, to):
    if to.suffix == ".part" and any(to.parent.glob("*.part")):
        time.sleep(600)
    return replace(self, to)
pathlib.Path.replace = replace_one
"""
"""Readers that finish one shard and no other, so that the command is there when it is interrupted."""


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_source(tmp_path, shards=3, samples_per_shard=10)
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "sitecustomize.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "planted"), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "launch.cli", "index", str(tmp_path / "source"), "--readers", "1"]
    command += ["--tokenizer", str(tmp_path / "tokenizer")]
    code, told = interrupt(command, lambda: bool(list(tmp_path.glob("source/index/parts/*.part"))))
    assert code == 130 and "the same command goes on from there" in told
    assert (
        len(list(tmp_path.glob("source/index/parts/*.part"))) == 1
        and not (tmp_path / "source/index/index.json").exists()
    )


def test_token_files_are_checked_in_full_and_show_how_far_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"the digit {number}"}) for number in range(1500)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    arguments = ["index", str(tmp_path / "in.jsonl"), "--tokenizer", str(train_tokenizer(tmp_path / "tokenizer"))]
    arguments += ["--output", str(tmp_path / "out" / "corpus")]
    assert end(*arguments, "--check") == 2
    assert "corpus.idx; make it with `triptych index" in capsys.readouterr().err
    assert end(*arguments) == 0
    told = capsys.readouterr().out
    assert "1000 documents, 6" in told and "1500 documents, 100% of the text" in told
    assert end(*arguments, "--check") == 0
    assert "1500 documents in" in capsys.readouterr().out
    path = tmp_path / "out" / "corpus.bin"
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    assert end(*arguments, "--check") == 1
    assert "corpus.bin has digest" in capsys.readouterr().out


def test_ctrl_c_leaves_no_half_token_file(tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("w") as out:
        out.writelines(json.dumps({"text": "the digit moves left " * 20}) + "\n" for _ in range(200_000))
    command = [sys.executable, "-m", "launch.cli", "index", str(tmp_path / "in.jsonl")]
    command += [
        "--tokenizer",
        str(train_tokenizer(tmp_path / "tokenizer")),
        "--output",
        str(tmp_path / "out" / "corpus"),
    ]
    parts = "out/.corpus.bin.*"
    code, told = interrupt(command, lambda: any(part.stat().st_size for part in tmp_path.glob(parts)))
    assert code == 130 and "interrupted; nothing was written" in told
    assert list((tmp_path / "out").iterdir()) == []
