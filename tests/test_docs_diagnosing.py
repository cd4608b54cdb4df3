"""docs/diagnosing.md and docs/evaluating.md: commands and keys are those there are, tables complete."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from launch.cli import _parser
from parallel.pace import WORK
from train.config import EvaluateConfig
from train.resolve import compose

ROOT = Path(__file__).resolve().parent.parent
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("diagnosing", "evaluating")}


def commands(page: str) -> list[list[str]]:
    """Lines of code that are commands, and those within a sentence."""
    found = re.findall(r"^    ((?:triptych|launch/)\S* .*)$", page, re.MULTILINE)
    return [shlex.split(line) for line in [*found, *re.findall(r"`(triptych [^`]+)`", page)]]


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_understood(name: str) -> None:
    told = commands(PAGES[name])
    assert told
    for program, *arguments in told:
        if program == "triptych":
            options, rest = _parser().parse_known_args(arguments)
            assert callable(options.command) and all("=" in text for text in rest)
        changed = [text for text in arguments if text.startswith(("profile.", "evaluate."))]
        held = ["evaluate.sources=[{name: held, path: held}]"] if "evaluate" in str(changed) else []
        compose("qwen2vl_2b_stage2", [*changed, *held])


def test_every_key_is_told() -> None:
    for field in dataclasses.fields(EvaluateConfig):
        assert re.search(rf"\b{field.name}\b", PAGES["evaluating"]), field.name
    for key in ("profile.steps", "profile.ranks"):
        assert key in PAGES["diagnosing"]


def test_every_kind_of_work_is_told() -> None:
    table = "".join(re.findall(r"^\| `.*$", PAGES["diagnosing"], re.MULTILINE))
    assert all(f"`{work}`" in table for work in WORK)
