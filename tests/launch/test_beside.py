"""A user's command on an exported checkpoint: what it is given, what is read back, what is said where it fails."""

import json
import sys
from pathlib import Path

import pytest

import launch.checkpoints.export
from launch.answering import beside
from train.config import EvaluateConfig


@pytest.fixture(autouse=True)
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(commit: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(commit.name)

    monkeypatch.setattr(launch.checkpoints.export, "export", export)


def run(tmp_path: Path, program: str) -> dict:
    command = (
        sys.executable,
        "-c",
        f"import sys\nexport, out, step = sys.argv[1:]\n{program}",
        "{export}",
        "{out}",
        "at {step}",
    )
    try:
        return beside._command(tmp_path / "step_3", tmp_path, 3, EvaluateConfig(command=command))
    finally:
        assert not (tmp_path / "export").exists(), "an export is as large as the model"


def test_what_the_command_writes_is_read(tmp_path: Path) -> None:
    writes = 'open(out, \'w\').write(\'{"step": "%s", "weights": "%s"}\' % (step, open(export + \'/weights\').read()))'
    assert run(tmp_path, writes) == {"step": "at 3", "weights": "step_3"}
    assert run(tmp_path, "") == {}, "what an earlier start has left is no result of this one"


def test_numbers_that_json_has_not_are_null(tmp_path: Path) -> None:
    writes = """open(out, 'w').write('{"acc": NaN, "by": {"a": [1.5, -Infinity, 1e999]}}')"""
    assert run(tmp_path, writes) == {"acc": None, "by": {"a": [1.5, None, None]}}


def test_the_command_gets_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN", "WANDB_API_KEY")
    for name in (*secrets, "OF_ITS_OWN"):
        monkeypatch.setenv(name, "told")
    names = ", ".join(f'"{name}"' for name in (*secrets, "OF_ITS_OWN"))
    prints = f"import json, os; json.dump({{n: os.environ.get(n) for n in [{names}]}}, open(out, 'w'))"
    assert run(tmp_path, prints) == dict.fromkeys(secrets) | {"OF_ITS_OWN": "told"}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(4)", "the command left with 4; .*log.txt has what it said"),
        ("open(out, 'w').write('[1]')", "holds no JSON object"),
        ("open(out, 'w').write('{')", "Expecting property name"),
        ("open(out, 'w').write(' ' * (2 << 20))", "a JSON object of at most 1048576 is read"),
    ],
)
def test_what_fails_is_said(tmp_path: Path, program: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path, program)


def test_a_fault_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside.os, "nice", lambda _: 0)
    monkeypatch.setattr(beside, "_end_with_the_trainer", lambda: None)
    evaluate = {"every_steps": 2, "command": ["no-such-program-anywhere"], "sources": []}
    wanted = {"commit": str(tmp_path / "step_3"), "out": str(tmp_path), "step": 3, "evaluate": evaluate}
    beside.main(json.dumps(wanted))
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["fault"].startswith("FileNotFoundError: ") and "no-such-program-anywhere" in told["fault"]
