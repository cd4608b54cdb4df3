"""One record of a conversation file, as LLaVA, ShareGPT and Qwen write them, to the content of our KEY.json.

A picture or clip is a mark in the text (`<image>`, `<video>`) and a name in a list of the record, or a part of a
message that names it. Marks and names must agree in number: which picture a mark means is otherwise a guess.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.errors import FormatError

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
TURNS = ("conversations", "conversation", "messages")
CAPTIONS = ("caption", "text", "txt")
MEDIA = {"image": "image", "images": "image", "video": "video", "videos": "video"}
# Fields that change what is learnt, in ways that we have not: they are named, for whoever relies on them.
_CHANGES = ("weight", "loss", "loss_mask", "train", "label", "chosen", "rejected", "kto_tag", "mask")
_LOST = ("audio", "audios", "sound")
_OURS = ("messages", "parts", "eval", "unmapped", "parallel_calls", "add_vision_id")
_CALLS = ("function_call", "tool_calls")  # the first is a role of its own to ShareGPT
# The newline that joins a mark to its text stands for nothing once the picture is a part of its own.
_MARK = re.compile(r"\n?(?:<(image|video)>|<\|vision_start\|><\|(image|video)_pad\|><\|vision_end\|>)\n?")
_INLINE = re.compile(r"<(img|image|video)>[^<]{1,4096}</\1>")


class FieldError(FormatError):
    """A field that cannot be mapped, so that the sample cannot be kept."""

    def __init__(self, field_name: str, reason: str) -> None:
        super().__init__(f"{field_name}: {reason}")
        self.field = field_name
        self.reason = reason


@dataclass(slots=True)
class Converted:
    """A record in our form; part `media` N of the content is the N-th of `media`."""

    content: dict[str, Any]
    media: list[tuple[str, str]] = field(default_factory=list)
    """(kind, name as the record has it)"""
    unmapped: list[tuple[str, str]] = field(default_factory=list)
    """(field, reason) of what was left behind though the sample is kept"""


def convert_record(record: Any, members: Sequence[str] | None = None) -> Converted:
    """Map one record. Raises FieldError if the sample cannot be kept as it was meant.

    Args:
        record: what the JSON held.
        members: kinds of the media that lie beside the record, in order; names in the record then mean nothing.
    """
    if not isinstance(record, dict):
        raise FieldError("record", f"must be an object, got {type(record).__name__}")
    named = _named(record) if members is None else [(kind, "") for kind in members]
    found = Converted(content={}, media=list(named))
    for name in _LOST:
        if record.get(name):
            raise FieldError(name, "sound has no place in a sample")
    turns = [name for name in TURNS if name in record]
    if len(turns) > 1:
        raise FieldError(turns[1], f"holds turns, and so does {turns[0]}")
    marks = _Marks(found, by_part=members is None)
    if turns:
        found.content["messages"] = _messages(record, turns[0], marks)
        if record.get("tools"):
            found.content["tools"] = _tools(record["tools"])
        if any(len(message.get("tool_calls", [])) > 1 for message in found.content["messages"]):
            found.content["parallel_calls"] = True
    else:
        found.content["parts"] = _document(record, marks)
    marks.check()
    for name in sorted(record.keys() - {*turns, *MEDIA, *(("system", "tools") if turns else CAPTIONS)}):
        if name in _OURS:
            found.unmapped.append((name, "means something else in our form"))
            continue
        if name in _CHANGES and record[name] not in (None, "", [], {}):
            found.unmapped.append((name, "changes what is learnt in a way that is not supported"))
        found.content[name] = record[name]
    return found


class _Marks:
    """Hands out the media of a record to the marks in its text, in order."""

    def __init__(self, found: Converted, by_part: bool) -> None:
        self.found = found
        self._by_part = by_part
        self._left = {
            kind: [number for number, (of, _) in enumerate(found.media) if of == kind] for kind in ("image", "video")
        }
        self._listed = {kind: len(numbers) for kind, numbers in self._left.items()}
        self._marks = {"image": 0, "video": 0}

    def take(self, kind: str) -> dict[str, Any]:
        """The part for the next mark of this kind."""
        self._marks[kind] += 1
        return {"type": kind, "media": self._left[kind].pop(0) if self._left[kind] else -1}

    def named(self, kind: str, name: Any) -> dict[str, Any]:
        """The part for a name that stands in the text itself."""
        if not self._by_part:
            return self.take(kind)
        if not isinstance(name, str) or not name:
            raise FieldError(f"content[].{kind}", f"expected a name, got {str(name)[:80]}")
        self.found.media.append((kind, name))
        return {"type": kind, "media": len(self.found.media) - 1}

    def take_rest(self) -> list[dict[str, Any]]:
        """Parts for all media that no mark stands for."""
        return [self.take(kind) for kind in ("image", "video") for _ in list(self._left[kind])]

    def check(self) -> None:
        """Raises FieldError unless every medium has its mark and every mark its medium."""
        for kind, count in self._marks.items():
            if count != self._listed[kind]:
                raise FieldError(kind, f"{self._listed[kind]} are given and {count} mark(s) stand for them")


def _named(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(kind, name) of what the record's own fields list."""
    named: list[tuple[str, str]] = []
    for field_name, kind in MEDIA.items():
        value = record.get(field_name)
        if value is None or value == "":
            continue
        names = value if isinstance(value, list) else [value]
        if not all(isinstance(name, str) and name for name in names):
            raise FieldError(field_name, f"expected a name or a list of names, got {str(value)[:80]}")
        if names and any(of == kind for of, _ in named):
            raise FieldError(field_name, f"{kind}s are named by another field as well")
        named.extend((kind, name) for name in names)
    return named


def _messages(record: Mapping[str, Any], turns: str, marks: _Marks) -> list[dict[str, Any]]:
    if not isinstance(record[turns], list) or not record[turns]:
        raise FieldError(turns, f"expected a list of turns, got {str(record[turns])[:80]}")
    messages = [_message(f"{turns}[{number}]", turn, marks) for number, turn in enumerate(record[turns])]
    system = record.get("system")
    if system:
        if not isinstance(system, str) or messages[0]["role"] == "system":
            raise FieldError("system", "expected a text, and no system turn beside it")
        messages.insert(0, {"role": "system", "content": system})
    if not any(message["role"] == "assistant" for message in messages):
        raise FieldError(turns, "no assistant turn: there is nothing to learn")
    return messages


def _message(where: str, turn: Any, marks: _Marks) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise FieldError(where, f"expected an object, got {str(turn)[:80]}")
    said = turn.get("role", turn.get("from"))
    value = turn.get("content", turn.get("value"))
    calls = [(name, turn[name]) for name in _CALLS if turn.get(name)]
    if said == _CALLS[0]:
        said, value, calls = "assistant", None, [(_CALLS[0], value)]
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise FieldError(where, f"no role of ours stands for {said!r}")
    known = {"role", "from", "content", "value", "tool_call_id", *_CALLS}
    for name in sorted(turn.keys() - known):
        if turn[name] not in (None, "", [], {}):
            marks.found.unmapped.append((f"{where.partition('[')[0]}[].{name}", "fields of a turn are not kept"))
    parts = _of_list(where, value, marks) if isinstance(value, list) else _of_text(where, value or "", marks)
    if not parts and not calls and role != "tool":
        raise FieldError(where, "the turn is empty")
    message: dict[str, Any] = {"role": role, "content": parts[0]["text"] if _is_text(parts) else parts or None}
    if calls:
        message["tool_calls"] = [call for _, value in calls for call in _calls(where, value)]
    elif message["content"] is None:
        message["content"] = ""  # the result of a tool that had nothing to say
    if "tool_call_id" in turn:
        message["tool_call_id"] = turn["tool_call_id"]
    return message


def _calls(where: str, value: Any) -> list[dict[str, Any]]:
    """Calls as OpenAI's API has them, from that or from the JSON text that ShareGPT has."""
    calls = _loaded(where, value)
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or "name" not in function:
            raise FieldError(where, f"a call needs a name, got {str(call)[:80]}")
        found.append(call if "function" in call else {"type": "function", "function": function})
    return found


def _tools(value: Any) -> list[dict[str, Any]]:
    tools = _loaded("tools", value)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise FieldError("tools", f"expected a list of objects, got {str(value)[:80]}")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _loaded(where: str, value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise FieldError(where, f"is not JSON: {error}") from None


def _is_text(parts: Sequence[Mapping[str, Any]]) -> bool:
    return len(parts) == 1 and parts[0]["type"] == "text"


def _of_text(where: str, text: Any, marks: _Marks) -> list[dict[str, Any]]:
    if not isinstance(text, str):
        raise FieldError(where, f"expected a text, got {str(text)[:80]}")
    if inline := _INLINE.search(text):
        raise FieldError(where, f"names a file inside {inline[0][:80]!r}; give it in a list, with a mark in its place")
    parts: list[dict[str, Any]] = []
    place = 0
    for mark in _MARK.finditer(text):
        parts += _text(text[place : mark.start()])
        parts.append(marks.take(mark[1] or mark[2]))
        place = mark.end()
    return parts + _text(text[place:])


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _of_list(where: str, value: Sequence[Any], marks: _Marks) -> list[dict[str, Any]]:
    """Parts as Qwen's messages have them: `type` and a field of that name, or only the field."""
    parts: list[dict[str, Any]] = []
    for part in value:
        if isinstance(part, str):
            part = {"text": part}
        if not isinstance(part, dict):
            raise FieldError(where, f"a part must be an object, got {str(part)[:80]}")
        kind = part.get("type") or next(
            (name for name in ("image", "video", "text", "image_url") if name in part), None
        )
        if kind == "text":
            parts += _of_text(where, part.get("text"), marks)
        elif kind in ("image", "video"):
            name = part.get(kind)
            parts.append(marks.take(kind) if name is None else marks.named(kind, name))
        elif kind == "image_url":
            url = part.get("image_url")
            parts.append(marks.named("image", url.get("url") if isinstance(url, dict) else url))
        else:
            raise FieldError(where, f"no part of ours stands for {str(part)[:80]}")
        for name in sorted(part.keys() - {"type", "text", "image", "video", "image_url"}):
            marks.found.unmapped.append((f"content[].{name}", "sizes and frames are the recipe's to say"))
    return parts


def _document(record: Mapping[str, Any], marks: _Marks) -> list[dict[str, Any]]:
    """A caption with its media before it, or where its marks are."""
    captions = [name for name in CAPTIONS if record.get(name) not in (None, "")]
    if not captions:
        raise FieldError(CAPTIONS[0], f"no text: none of {', '.join((*TURNS, *CAPTIONS))} is there")
    texts = {name: record[name] for name in captions}
    if len({str(text) for text in texts.values()}) > 1:
        raise FieldError(captions[1], f"holds another text than {captions[0]}")
    parts = _of_text(captions[0], texts[captions[0]], marks)
    return parts if any(part["type"] != "text" for part in parts) else [*marks.take_rest(), *parts]
