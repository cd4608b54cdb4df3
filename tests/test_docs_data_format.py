"""The samples of docs/data_format.md are those of the generators, and what it says of boxes and calls is so."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from data.encoding.grounding import part_text
from data.encoding.render import Text, render_sample
from data.samples.kinds import KINDS, kind_sample

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data_format.md").read_text("utf-8")
BLOCK = re.compile(r"```json\n(.*?)```", re.DOTALL)
TAP = {"name": "tap", "description": "Tap a point of the screen.", "parameters": {"type": "object", "properties": {}}}


def test_the_page_has_one_sample_of_each_kind_and_it_is_the_generators() -> None:
    section = PAGE.partition("\n## One sample of each kind\n")[2]
    shown = dict(re.findall(r"### (\w+)\n\n```json\n(.*?)```", section, re.DOTALL))
    assert list(shown) == list(KINDS)
    for kind, text in shown.items():
        assert json.loads(text) == kind_sample(kind, 0, 0).content


def test_every_sample_on_the_page_is_one() -> None:
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == len(KINDS) + 2
    for block in blocks:
        assert render_sample(json.loads(block))


def test_the_three_scales_give_the_box_that_is_shown() -> None:
    rows = re.findall(r"^\| `(\[640, 480\]|1|1000)`: .* \| `(\[.*?\])` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for scale, box in rows:
        text = part_text({"type": "box", "box": json.loads(box), "scale": json.loads(scale)})
        assert f"<|object_ref_start|>the cat<|object_ref_end|>{text}\n" in PAGE


def marked(sample: dict[str, Any]) -> str:
    """What is rendered, with `[[` and `]]` around what is learnt."""
    pieces: list[tuple[str, bool]] = []
    for run in render_sample(sample):
        if isinstance(run, Text):
            pieces += run.pieces
        elif hasattr(run, "learnt"):
            pieces.append((f"<|{run.name}|>", run.learnt))
        else:
            pieces.append(("<|vision_start|><|image_pad|><|vision_end|>", False))
    return "".join(f"[[{text}]]" if learnt else text for text, learnt in pieces).replace("]][[", "")


def call(*point: int) -> list[dict[str, Any]]:
    return [{"function": {"name": "tap", "arguments": {"point": list(point)}}}]


def test_the_system_message_and_the_turn_of_an_agent_are_as_shown() -> None:
    messages = [
        {"role": "user", "content": "Open it."},
        {"role": "assistant", "content": "I open it.", "tool_calls": call(833, 500)},
        {"role": "tool", "content": [{"type": "image", "media": 0}]},
        {"role": "assistant", "content": "", "tool_calls": call(10, 20)},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "It is open."},
    ]
    text = marked({"tools": [{"function": TAP}], "messages": messages})
    system, _, turn = text.partition("<|im_start|>user\nOpen it.<|im_end|>\n")
    system = system.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    assert f"```\n{system}\n```" in PAGE
    assert f"```\n{turn}\n```" in PAGE
