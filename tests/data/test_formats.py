"""Foreign formats: what maps, what is listed, and that nothing is taken for what it is not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError
from data.formats.conversations import FieldError, convert_record
from data.formats.shards import parse_sample, scan_shard
from data.index.build import build_index
from data.loading.rows import build_reader
from data.plan.plan import Cursor, Plan
from data.store.store import LocalStore
from tests.data.conftest import picture_bytes
from tests.data.test_shards import tar_bytes

PICTURE = {"type": "image", "media": 0}
ASKED = [
    {"role": "user", "content": [PICTURE, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "7"},
]


def turns(
    *said: str, keys: tuple[str, str] = ("from", "value"), roles: tuple[str, str] = ("human", "gpt")
) -> list[dict]:
    return [{keys[0]: roles[number % 2], keys[1]: text} for number, text in enumerate(said)]


def asking(*parts: dict[str, Any], answer: Any = "7") -> list[dict]:
    return [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": answer}]


TEXT = {"type": "text", "text": "What?"}
PAD = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "conversations": turns("<image>\nWhat?", "7")},
        {"image": ["a.png"], "conversations": turns("<image>What?", "7")},
        {"images": ["a.png"], "messages": turns("<image>What?", "7", keys=("role", "content"))},
        {"images": ["a.png"], "conversations": turns(f"{PAD}What?", "7", roles=("user", "assistant"))},
        {"messages": asking({"type": "image", "image": "a.png"}, TEXT, answer=[{"type": "text", "text": "7"}])},
        {"messages": asking({"image": "a.png"}, {"text": "What?"})},
        {"messages": asking({"type": "image_url", "image_url": {"url": "a.png"}}, TEXT)},
        {"images": ["a.png"], "messages": asking({"type": "image"}, TEXT)},
    ],
)
def test_the_usual_spellings_of_one_conversation_are_one_sample(record: dict[str, Any]) -> None:
    found = convert_record(record)
    assert found.content == {"messages": ASKED}
    assert found.media == [("image", "a.png")] and found.unmapped == []


def test_marks_take_media_in_order_each_of_its_kind() -> None:
    record = {
        "id": "x1",
        "images": ["a.png", "b.png"],
        "video": "c.mp4",
        "system": "Be brief.",
        "conversations": turns("<image>\n<video>\nWhich?\n<image>", "second", "Sure?", "yes"),
    }
    found = convert_record(record)
    assert found.media == [("image", "a.png"), ("image", "b.png"), ("video", "c.mp4")]
    system, first, *_ = found.content["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert [part.get("media", part.get("text")) for part in first["content"]] == [0, 2, "Which?", 1]
    assert found.content["id"] == "x1"


def test_calls_and_results_become_those_of_our_format() -> None:
    call = {"name": "tap", "arguments": {"x": 1}}
    wrapped = {"type": "function", "function": call}
    sharegpt = [("human", "go"), ("function_call", json.dumps(call)), ("observation", "done"), ("gpt", "ok")]
    record: dict[str, Any] = {
        "tools": json.dumps([{"name": "tap"}]),
        "conversations": [{"from": role, "value": text} for role, text in sharegpt],
    }
    found = convert_record(record).content
    assert found["tools"] == [{"type": "function", "function": {"name": "tap"}}]
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert found["messages"][1] == {"role": "assistant", "content": None, "tool_calls": [wrapped]}
    openai = {"role": "assistant", "content": None, "tool_calls": [wrapped, wrapped]}
    record = {
        "messages": [{"role": "user", "content": "go"}, openai, {"role": "tool", "content": "", "tool_call_id": "1"}]
    }
    found = convert_record(record).content
    assert found["messages"][1]["tool_calls"] == [wrapped, wrapped] and found["parallel_calls"] is True
    assert found["messages"][2] == {"role": "tool", "content": "", "tool_call_id": "1"}


@pytest.mark.parametrize(
    ("record", "field", "reason"),
    [
        ({"image": "a.png", "conversations": turns("What?", "7")}, "image", "1 are given and 0 mark"),
        ({"conversations": turns("<image>What?", "7")}, "image", "0 are given and 1 mark"),
        ({"image": "a.png", "conversations": turns("<image><image>", "7")}, "image", "1 are given and 2 mark"),
        ({"image": "a.png", "conversations": turns("<video>", "7")}, "image", "1 are given and 0 mark"),
        ({"image": {"path": "a"}, "conversations": turns("<image>", "7")}, "image", "expected a name or a list"),
        ({"video": [["f1.png", "f2.png"]], "conversations": turns("<video>", "7")}, "video", "expected a name"),
        ({"image": "a", "images": ["a"], "conversations": turns("<image>", "7")}, "images", "another field as well"),
        ({"audio": "a.wav", "conversations": turns("x", "7")}, "audio", "sound"),
        ({"conversations": turns("x", "7"), "messages": []}, "messages", "and so does conversations"),
        ({"conversations": turns("x")}, "conversations", "nothing to learn"),
        ({"conversations": turns("x", "")}, "conversations[1]", "the turn is empty"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "conversations[0]", "no role of ours"),
        ({"conversations": turns("look: <img>a.png</img>", "7")}, "conversations[0]", "names a file inside"),
        ({"conversations": turns("x", 7)}, "conversations[1]", "expected a text"),  # type: ignore[arg-type]
        ({"conversations": "x"}, "conversations", "expected a list of turns"),
        ({"messages": asking({"type": "audio", "audio": "x"})}, "messages[0]", "no part of ours"),
        ({"prompt": "x"}, "caption", "no text"),
        ({"caption": "x", "text": "y"}, "text", "holds another text than caption"),
        ([1], "record", "must be an object"),
    ],
)
def test_what_cannot_be_kept_is_named_by_its_field(record: Any, field: str, reason: str) -> None:
    with pytest.raises(FieldError) as caught:
        convert_record(record)
    assert caught.value.field == field and reason in caught.value.reason


def test_fields_that_change_what_is_learnt_are_named_and_others_are_kept() -> None:
    record = {"source": "web", "weight": 2, "parts": 1, "conversations": turns("x", "7")}
    record["conversations"][1]["loss"] = True  # type: ignore[index]
    found = convert_record(record)
    assert found.content["source"] == "web" and found.content["weight"] == 2 and "parts" not in found.content
    assert [name for name, _ in found.unmapped] == ["conversations[].loss", "parts", "weight"]


SMALL = picture_bytes(20, 30)
CAPTIONED: dict[str, Any] = {"parts": [PICTURE, {"type": "text", "text": "a cat"}]}


def talk(*said: str) -> bytes:
    return json.dumps({"image": "x/y.jpg", "conversations": turns(*said)}).encode()


@pytest.mark.parametrize(
    ("members", "content"),
    [
        ({"jpg": SMALL, "txt": b"a cat\n"}, CAPTIONED),
        ({"PNG": SMALL, "caption": b"a cat"}, CAPTIONED),
        ({"webp": SMALL, "json": b'{"caption": "a cat", "url": "u"}'}, CAPTIONED | {"url": "u"}),
        ({"jpeg": SMALL, "json": b'{"text": "a cat"}'}, CAPTIONED),
        ({"jpg": SMALL, "json": b'"a cat"'}, CAPTIONED),
        ({"jpg": SMALL, "txt": b"a cat", "json": b'{"caption": "another"}'}, CAPTIONED),
        ({"jpg": SMALL, "json": talk("<image>\nWhat?", "7")}, {"messages": ASKED}),
        ({"mp4": b"clip", "txt": b"a cat"}, {"parts": [{"type": "video", "media": 0}, *CAPTIONED["parts"][1:]]}),
        ({"txt": b"a cat"}, {"parts": [{"type": "text", "text": "a cat"}]}),
        ({"jpg": SMALL, "txt": b"a cat", "cls": b"3"}, CAPTIONED | {"unmapped": ["member .cls"]}),
    ],
)
def test_the_usual_members_of_a_webdataset_sample_are_read(members: dict, content: dict, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes({f"k.{suffix}": data for suffix, data in members.items()}))
    (stored,) = scan_shard(LocalStore(tmp_path), "x.tar")
    raw = parse_sample(stored.data, "webdataset")
    assert raw.content == content
    assert [data for _, data in raw.media.values()] == [data for data in members.values() if data in (SMALL, b"clip")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": SMALL}, "no text"),
        ({"jpg": SMALL, "txt": b"\xff"}, "not UTF-8"),
        ({"jpg": SMALL, "json": b"{"}, "not UTF-8 JSON"),
        ({"jpg": SMALL, "png": SMALL, "json": talk("<image>", "7")}, "2 are given"),
        ({"json": talk("<image>", "7")}, "0 are given and 1 mark"),
    ],
)
def test_a_webdataset_sample_that_cannot_be_read_is_refused(members: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes({f"k.{suffix}": data for suffix, data in members.items()}))
    (stored,) = scan_shard(LocalStore(tmp_path), "x.tar")
    with pytest.raises(FormatError, match=message):
        parse_sample(stored.data, "webdataset")


def test_webdataset_shards_are_trained_on_in_place(
    tmp_path: Path, tokenizer: Tokenizer, make_config: Callable[..., Any]
) -> None:
    folder = tmp_path / "wds"
    folder.mkdir()
    members = {
        f"{n:03d}.{suffix}": data for n in range(12) for suffix, data in (("jpg", SMALL), ("txt", b"digit %d" % n))
    }
    (folder / "a.tar").write_bytes(tar_bytes(members | {"bad.jpg": SMALL, "bad.md5": b"x"}))
    index = build_index(folder, tokenizer, format_name="webdataset", output=tmp_path / "index")
    assert len(index) == 12 and [entry["key"] for entry in index.meta["refused"]] == ["bad"]
    config = make_config(folder, rows_per_step=1)
    with_index = config.sources[0].__class__(name="wds", path=str(folder), index=str(tmp_path / "index"))
    config = make_config(folder, rows_per_step=1, sources=(with_index,))
    reader = build_reader(config, tokenizer)
    plan = Plan(config, [index])
    row, records = reader.read(plan.step(Cursor()).rows[0])
    reader.close()
    assert not records and "digit" in tokenizer.decode(row.tokens.tolist())
