"""docs/first_run.md, typed line by line in a copy of the checkout."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "first_run.md").read_text()
COMMANDS = re.findall(r"^    ((?:python|triptych|launch/torchrun.sh|tar) .*)$", PAGE, re.MULTILINE)
TOLD = re.compile(
    r"stage2  step {1,6}\d+ {1,4}\d+%  loss \d\.\d{4}  norm \d+\.\d{3} +\d+ tokens/s  data wait \d+%  \d+ s left"
)
"""What the terminal shows of a step."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a fresh clone has it, compiled files along to save seconds."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train", "model", "data", "parallel", "launch", "recipes"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def typed(words: list[str]) -> str:
    """What it tells. Starts of processes are real; the rest of `triptych` runs in this one, which saves its imports."""
    if words[0] == "triptych":
        words = [sys.executable, "-m", "launch.cli", *words[1:]]
    elif words[0] == "python":
        words = [sys.executable, *words[1:]]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(Path.cwd()), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_its_commands() -> None:
    assert [command.split()[0] for command in COMMANDS].count("triptych") == 7
    assert len(COMMANDS) == 10
    assert TOLD.search(PAGE)


@pytest.mark.timeout(900)
def test_a_reader_gets_what_the_page_says(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone)
    told = {}
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "triptych" and words[1] != "resume":
            with pytest.raises(SystemExit) as left:
                main(words[1:])
            told[command] = capsys.readouterr().out
            assert left.value.code == 0, command
        else:
            told[command] = typed(words)
    everything = "\n".join(told.values())
    assert TOLD.search(told["launch/torchrun.sh --config-name first_run stop_after_steps=20"])
    assert "processes: 1 -> 2" in everything
    steps = [json.loads(line) for line in Path("runs/first/run/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 41))
    assert steps[0]["loss"] > 6 and steps[-1]["loss"] < 2
    (answer,) = [said for command, said in told.items() if " chat " in command]
    assert re.fullmatch(r"[\w ]+\n*", answer), "words"
    assert Path("runs/first/hf/config.json").is_file()
