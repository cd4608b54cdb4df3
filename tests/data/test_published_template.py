"""The chat template that Qwen2-VL-Instruct was published with, which is not the one in the folders that tests make."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from data.encoding.encode import encode_prompt, encode_sample, media_grid, visual_parts
from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError
from data.types import MediaSize
from tests.data.conftest import IMAGE, VIDEO
from tests.harness.chat_judge import ChatJudge, published_template
from tests.harness.chat_strategies import shown_conversations

SIZES = {
    "image": MediaSize(kind="image", height=60, width=90),
    "video": MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0),
}
EXAMPLES = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
CAT = {"type": "ref", "text": "cat"}
BOX = {"type": "box", "box": [100, 250, 500, 1000], "scale": 1000}


@pytest.fixture(scope="module")
def judge(tokenizer_folder: Path) -> ChatJudge:
    return ChatJudge(tokenizer_folder, published_template())


def encoded(sample: dict[str, Any], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids, visual tokens of each picture and clip)."""
    sizes = [SIZES[kind] for kind, _ in visual_parts(sample)]
    lengths = [media_grid(size, IMAGE, VIDEO).num_tokens for size in sizes]
    return encode_sample(sample, sizes, tokenizer, IMAGE, VIDEO).tokens.tolist(), lengths


@EXAMPLES
@given(sample=shown_conversations())
def test_ids_and_prompts_are_those_of_the_published_template(
    sample: dict[str, Any], tokenizer: Tokenizer, judge: ChatJudge
) -> None:
    ids, lengths = encoded(sample, tokenizer)
    assert ids == judge.judge(sample, lengths)[0]
    said = [place for place, message in enumerate(sample["messages"]) if message["role"] == "assistant"]
    if said and said[-1]:
        before = {**sample, "messages": sample["messages"][: said[-1]]}
        shown = lengths[: len(visual_parts(before))]
        sizes = [SIZES[kind] for kind, _ in visual_parts(sample)]
        prompt = encode_prompt(sample, sizes, tokenizer, IMAGE, VIDEO)
        assert prompt.tokens.tolist() == judge.judge(before, shown, add_generation_prompt=True)[0]


@EXAMPLES
@given(sample=shown_conversations(control=False))
def test_ids_are_those_that_transformers_gives_in_one_call(
    sample: dict[str, Any], tokenizer: Tokenizer, judge: ChatJudge
) -> None:
    ids, lengths = encoded(sample, tokenizer)
    pads, remaining = (tokenizer.ids.image_pad, tokenizer.ids.video_pad), iter(lengths)
    assert ids == [one for token in judge.direct(sample) for one in [token] * (next(remaining) if token in pads else 1)]


def content(sample: dict[str, Any], tokenizer: Tokenizer) -> str:
    """What is written of the user's first message."""
    ids, _ = encoded(sample, tokenizer)
    return tokenizer.decode(ids).partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def test_references_and_boxes_are_lost_by_the_published_template(tokenizer: Tokenizer, judge: ChatJudge) -> None:
    sample = {"messages": [{"role": "user", "content": [CAT, BOX]}]}
    assert judge.render(sample).endswith("user\ncat<|im_end|>\n")
    ours = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,250),(500,999)<|box_end|>"
    assert content(sample, tokenizer) == ours
    written = {"messages": [{"role": "user", "content": ours}]}
    assert encoded(written, tokenizer) == encoded(sample, tokenizer)
    assert judge.direct(written) == encoded(sample, tokenizer)[0]


def test_tools_and_calls_are_lost_by_the_published_template(tokenizer: Tokenizer, judge: ChatJudge) -> None:
    call = {"function": {"name": "tap", "arguments": {"at": [1, 2]}}}
    tools = [{"type": "function", "function": {"name": "tap", "description": "Tap.", "parameters": {}}}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Open it."},
        {"role": "assistant", "content": "So be it.", "tool_calls": [call]},
        {"role": "tool", "content": "open"},
    ]
    theirs = judge.render({"tools": tools, "messages": messages})
    assert "tap" not in theirs and "<|im_start|>tool\nopen<|im_end|>" in theirs
    ours = tokenizer.decode(encoded({"tools": tools, "messages": messages}, tokenizer)[0])
    assert ours.count("tap") > 3 and "<|im_start|>tool" not in ours


def test_text_that_spells_control_tokens_stays_text(tokenizer: Tokenizer, judge: ChatJudge) -> None:
    sample = {"messages": [{"role": "user", "content": "a<|im_end|>b"}]}
    ours, theirs = np.array(encoded(sample, tokenizer)[0]), np.array(judge.direct(sample))
    assert (ours == tokenizer.ids.im_end).sum() == 2 and (theirs == tokenizer.ids.im_end).sum() == 3


@pytest.mark.parametrize("part", [{"image": "a.jpg"}, {"type": "image_url", "image_url": {"url": "a.jpg"}}])
def test_parts_without_our_type_are_refused(part: dict[str, Any], tokenizer: Tokenizer, judge: ChatJudge) -> None:
    messages = [{"role": "user", "content": [{"type": "none", **part}]}]
    assert "<|image_pad|>" in judge.render({"messages": messages})
    with pytest.raises(FormatError, match="a part is a text or ref"):
        encode_sample({"messages": messages}, [SIZES["image"]], tokenizer, IMAGE, VIDEO)
