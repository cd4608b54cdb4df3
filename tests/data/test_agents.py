"""Conversations of every shape against what transformers makes of them, and Qwen-Agent's format letter by letter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from data.config import IGNORE, ImageConfig, VideoConfig
from data.encoding.encode import encode_prompt, encode_sample, media_grid, visual_parts
from data.encoding.render import render_sample
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.errors import FormatError
from data.index.count import Count, count_tokens
from data.samples.tokenizer import train_tokenizer
from data.types import MediaSize
from tests.harness.chat_judge import ChatJudge
from tests.harness.chat_strategies import conversations

IMAGE = ImageConfig(min_pixels=28 * 28, max_pixels=56 * 84)
VIDEO = VideoConfig(min_pixels=28 * 28, max_pixels=56 * 56, max_frames=8)
SIZES = {
    "image": MediaSize(kind="image", height=60, width=90),
    "video": MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0),
}
PROSE = "You are a helpful assistant. system user tool Tools: the input of the tool, results. What is this picture?"
TAP = {
    "type": "function",
    "function": {
        "name": "tap",
        "description": "Touch the screen.",
        "parameters": {"type": "object", "properties": {"at": {"type": "array"}}, "required": ["at"]},
    },
}
# Written out by hand from Qwen-Agent's qwen_fncall_prompt.py: FN_CALL_TEMPLATE["en"] and get_function_description.
SYSTEM = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\n## You have access to the following tools:\n\n### tap\n\n"
    'tap: Touch the screen. Parameters: {"type": "object", "properties": {"at": {"type": "array"}}, '
    '"required": ["at"]} Format the arguments as a JSON object.\n\n'
    "## When you need to call a tool, please insert the following command in your reply, which can be called zero or "
    "multiple times according to your needs:\n\n"
    "\u273fFUNCTION\u273f: The tool to use, should be one of [tap]\n\u273fARGS\u273f: The input of the tool\n"
    "\u273fRESULT\u273f: Tool results\n"
    "\u273fRETURN\u273f: Reply based on tool results. Images need to be rendered as ![](url)<|im_end|>\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([PROSE] * 3, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def judge(folder: Path) -> ChatJudge:
    return ChatJudge(folder)


def call(arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "tap", "arguments": arguments or {"at": [1, 2]}}, **more}


def trajectory() -> dict[str, Any]:
    return {
        "tools": [TAP],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image", "media": 0}, {"type": "text", "text": "Open it."}]},
            {"role": "assistant", "content": "I tap.", "tool_calls": [call()]},
            {"role": "tool", "content": [{"type": "image", "media": 1}]},
            {"role": "assistant", "content": "", "tool_calls": [call({"at": [3, 4]})]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "It is open."},
        ],
    }


def encode(sample: dict[str, Any], tokenizer: Tokenizer) -> tuple[list[int], list[bool], list[int]]:
    """(ids, learnt, visual tokens of each picture and clip); the first token is nobody's target."""
    sizes = [SIZES[kind] for kind, _ in visual_parts(sample)]
    found = encode_sample(sample, sizes, tokenizer, IMAGE, VIDEO)
    places = np.flatnonzero(found.targets != IGNORE)
    assert np.array_equal(found.targets[places], found.tokens[places + 1])
    learnt = np.zeros(len(found.tokens), dtype=bool)
    learnt[places + 1] = True
    return found.tokens.tolist(), learnt.tolist(), [media_grid(size, IMAGE, VIDEO).num_tokens for size in sizes]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(sample=conversations())
def test_ids_and_targets_are_those_of_the_chat_template(
    sample: dict[str, Any], tokenizer: Tokenizer, judge: ChatJudge
) -> None:
    ids, learnt, lengths = encode(sample, tokenizer)
    assert (ids, learnt) == judge.judge(sample, lengths)
    (count,) = count_tokens([render_sample(sample)], tokenizer)
    assert count == Count(text=len(ids) - sum(lengths), targets=sum(learnt))
    said = [place for place, message in enumerate(sample["messages"]) if message["role"] == "assistant"]
    if said:
        before = {**sample, "messages": sample["messages"][: said[-1]]}
        prompt = encode_prompt(sample, [SIZES[k] for k, _ in visual_parts(sample)], tokenizer, IMAGE, VIDEO)
        shown = lengths[: len(prompt.media)]
        if said[-1]:  # transformers renders no conversation without a message
            assert prompt.tokens.tolist() == judge.judge(before, shown, add_generation_prompt=True)[0]
        assert (prompt.targets == IGNORE).all()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(sample=conversations(control=False))
def test_without_control_tokens_in_text_transformers_needs_no_help(
    sample: dict[str, Any], tokenizer: Tokenizer, judge: ChatJudge
) -> None:
    pads = (tokenizer.ids.image_pad, tokenizer.ids.video_pad)
    ids, _, lengths = encode(sample, tokenizer)
    remaining = iter(lengths)
    expected = [one for token in judge.direct(sample) for one in [token] * (next(remaining) if token in pads else 1)]
    assert ids == expected


def test_a_trajectory_is_written_as_qwen_agent_writes_it(tokenizer: Tokenizer, judge: ChatJudge) -> None:
    ids, learnt, lengths = encode(trajectory(), tokenizer)
    pads = "<|image_pad|>" * lengths[0]
    written = (
        SYSTEM + f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>Open it.<|im_end|>\n<|im_start|>assistant\n"
        'I tap.\n\u273fFUNCTION\u273f: tap\n\u273fARGS\u273f: {"at": [1, 2]}\n\u273fRESULT\u273f: '
        f"<|vision_start|>{pads}<|vision_end|>\n\u273fRETURN\u273f: "
        '\n\u273fFUNCTION\u273f: tap\n\u273fARGS\u273f: {"at": [3, 4]}\n\u273fRESULT\u273f: done\n'
        "\u273fRETURN\u273f: It is open.<|im_end|>\n"
    )
    assert tokenizer.decode(ids) == written
    assert judge.render(trajectory()) == written.replace(pads, "<|image_pad|>")
    told = tokenizer.decode([token for token, own in zip(ids, learnt, strict=True) if own])
    assert told == (
        'I tap.\n\u273fFUNCTION\u273f: tap\n\u273fARGS\u273f: {"at": [1, 2]}\n\u273fRESULT\u273f'
        ': \n\u273fFUNCTION\u273f: tap\n\u273fARGS\u273f: {"at": [3, 4]}\n\u273fRESULT\u273f'
        ": It is open.<|im_end|>\n"
    )


def test_a_prompt_within_a_trajectory_ends_where_the_agent_goes_on(tokenizer: Tokenizer) -> None:
    sizes = [SIZES["image"]] * 2
    prompt = encode_prompt(trajectory(), sizes, tokenizer, IMAGE, VIDEO)
    assert tokenizer.decode(prompt.tokens[-30:].tolist()).endswith("RESULT\u273f: done\n\u273fRETURN\u273f")


def test_an_answer_of_nothing_after_a_result_is_learnt(tokenizer: Tokenizer) -> None:
    for last, told in (({"role": "assistant", "content": ""}, ": <|im_end|>\n"), (None, "")):
        sample = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call()]}]}
        sample["messages"] += [{"role": "tool", "content": "done"}, *([last] if last else [])]
        ids, learnt, _ = encode(sample, tokenizer)
        own = tokenizer.decode([token for token, is_own in zip(ids, learnt, strict=True) if is_own])
        assert tokenizer.decode(ids).endswith("done\n\u273fRETURN\u273f: <|im_end|>\n")
        assert own.endswith("\u273fRESULT\u273f" + told)


def test_a_tool_message_that_answers_no_call_is_a_turn_of_its_own(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}]
    ids, learnt, _ = encode({"messages": messages}, tokenizer)
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nx<|im_end|>\n<|im_start|>tool\ny<|im_end|>\n")
    assert not any(learnt)


def test_code_is_called_with_a_fence_and_several_calls_in_their_own_template(
    tokenizer: Tokenizer, judge: ChatJudge
) -> None:
    function = {"name": "code_interpreter", "description": "Run.", "parameters": {}}
    run = {"function": {"name": "code_interpreter", "arguments": "```py\n1\n```"}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [run, call()]}]
    messages += [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    sample = {"tools": [{"function": function}, TAP], "parallel_calls": True, "messages": messages}
    text = tokenizer.decode(encode(sample, tokenizer)[0])
    assert text == judge.render(sample)
    assert "code_interpreter: Run. Parameters: {} Enclose the code within triple backticks (`) at the" in text
    assert "parallel:\n\n\u273fFUNCTION\u273f: The name of tool 1, should be one of [code_interpreter,tap]\n" in text
    assert text.endswith(
        "\u273fFUNCTION\u273f: code_interpreter\n\u273fARGS\u273f: \n```py\n1\n```\n\u273fFUNCTION\u273f: tap\n"
        '\u273fARGS\u273f: {"at": [1, 2]}\n\u273fRESULT\u273f: 1\n\u273fRESULT\u273f: 2\n\u273fRETURN\u273f: '
        "<|im_end|>\n"
    )


ASKED = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tools": {}, "messages": [ASKED]}, None),
        ({"tools": "tap"}, "must be a list"),
        ({"tools": [{"name": "tap"}]}, "expected"),
        ({"tools": [{"function": {"name": "tap", "description": "x"}}]}, "name, description and parameters"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [call()]}]}, "of the assistant"),
        ({"messages": [{"role": "assistant", "content": None}]}, "parts must be a list"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call([1])]}]}, "name and arguments"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call(), call()]}]}, "parallel_calls"),
        (
            {"tools": [TAP], "messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]},
            "None",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "", "tool_calls": [call()]},
                    {"role": "tool", "content": "1"},
                    {"role": "tool", "content": "2"},
                ]
            },
            "1 calls are followed by 2 tool messages",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "", "tool_calls": [call(id="a")]},
                    {"role": "tool", "content": "1", "tool_call_id": "b"},
                ]
            },
            "the result of call 'b' stands where that of 'a' belongs",
        ),
        ({"add_vision_id": 1}, "true or false"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
    ],
)
def test_what_is_wrong_with_a_trajectory_is_said(
    changes: dict[str, Any], told: str | None, tokenizer: Tokenizer
) -> None:
    sample = {"messages": [ASKED], **changes}
    if told is None:
        encode(sample, tokenizer)
        return
    with pytest.raises(FormatError, match=told):
        encode(sample, tokenizer)


def test_conversation_fields_are_refused_in_documents(tokenizer: Tokenizer) -> None:
    with pytest.raises(FormatError, match="add_vision_id: for conversations only"):
        encode({"parts": [{"type": "text", "text": "x"}], "add_vision_id": True}, tokenizer)
