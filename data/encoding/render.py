"""A sample's JSON to what is written, in order: text with what of it is learnt, control tokens, pictures and clips.

No tokenizer here. The format is in docs/data_format.md; chat_template.py is the same for conversations, in jinja.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.encoding.agents import RESULT, RETURN, call_text, check_results, checked_calls, checked_tools, tools_text
from data.encoding.chat_template import DEFAULT_SYSTEM
from data.encoding.grounding import part_text
from data.errors import FormatError
from data.types import MediaKind

ROLES = ("system", "user", "assistant", "tool")
TEXT_TYPES = ("text", "ref", "box")
VISION_NAMES = {"image": "Picture", "video": "Video"}
_MAX_MEDIA = 65536

Message = Mapping[str, Any]
Part = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that are tokenised as one, in pieces: (characters, whether they are learnt)."""

    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Special:
    """One control token, by its field of TokenIds."""

    name: str
    learnt: bool = False


@dataclass(frozen=True, slots=True)
class Visual:
    """A picture or clip with its markers."""

    kind: MediaKind
    member: int


Run = Text | Special | Visual


def render_sample(sample: Mapping[str, Any]) -> list[Run]:
    """The whole sample. Raises FormatError."""
    if "messages" in sample:
        return _conversation(sample, _messages(sample))
    page = _Page()
    for part in _document_parts(sample):
        page.part(part, learnt=not part.get("prefix", False))
        page.end_text()
    page.special("end_of_text", learnt=True)
    return page.runs


def render_prompt(sample: Mapping[str, Any]) -> list[Run]:
    """What comes before the answer: the last message of the assistant, or the last learnt text of a document.

    Raises also FormatError if there is no answer.
    """
    if "messages" in sample:
        messages = _messages(sample)
        last = _last([message["role"] == "assistant" for message in messages], "assistant turn")
        return _conversation(sample, messages[:last], answer_follows=True)
    parts = _document_parts(sample)
    learnt = [part["type"] in TEXT_TYPES and not part.get("prefix", False) for part in parts]
    page = _Page()
    for part in parts[: _last(learnt, "supervised text")]:
        page.part(part, learnt=False)
        page.end_text()
    return page.runs


@dataclass(slots=True)
class _Page:
    """Grows the runs. Texts next to each other are tokenised together, as a chat template's rendering is."""

    with_ids: bool = False
    """`Picture 1: ` before each picture, `Video 1: ` before each clip, counted over the whole conversation."""
    runs: list[Run] = field(default_factory=list)
    _pieces: list[tuple[str, bool]] = field(default_factory=list)
    _shown: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VISION_NAMES, 0))

    def text(self, text: str, learnt: bool) -> None:
        if not text:
            return
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise FormatError(f"text {text[:80]!a} holds half a surrogate pair, which is no character") from error
        self._pieces.append((text, learnt))

    def end_text(self) -> None:
        if self._pieces:
            self.runs.append(Text(tuple(self._pieces)))
            self._pieces = []

    def special(self, name: str, learnt: bool = False) -> None:
        self.end_text()
        self.runs.append(Special(name, learnt))

    def part(self, part: Part, learnt: bool) -> None:
        kind = part["type"]
        if kind in TEXT_TYPES:
            self.text(part_text(part), learnt)
            return
        self._shown[kind] += 1
        if self.with_ids:
            self.text(f"{VISION_NAMES[kind]} {self._shown[kind]}: ", learnt=False)
        self.end_text()
        self.runs.append(Visual(kind, part["media"]))

    def content(self, message: Message, learnt: bool) -> None:
        content = message.get("content")
        if isinstance(content, str):
            self.text(content, learnt)
            return
        for part in content or ():
            self.part(part, learnt)

    def open_turn(self, role: str) -> None:
        self.special("im_start")
        self.text(f"{role}\n", learnt=False)

    def end_turn(self, learnt: bool) -> None:
        self.special("im_end", learnt)
        self.text("\n", learnt)


def _conversation(sample: Mapping[str, Any], messages: Sequence[Message], answer_follows: bool = False) -> list[Run]:
    """All of `messages`; with `answer_follows` up to where the assistant goes on to speak."""
    page = _Page(with_ids=_flag(sample, "add_vision_id"))
    tools, parallel = checked_tools(sample), _flag(sample, "parallel_calls")
    _system(page, messages, tools, parallel)
    place = 1 if messages and messages[0]["role"] == "system" else 0
    is_open = False
    while place < len(messages):
        message = messages[place]
        calls = checked_calls(message, tools, parallel)
        results = _results(messages, place) if calls else []
        check_results(calls, results)
        if is_open:
            page.text(": ", learnt=True)
        else:
            page.open_turn(message["role"])
        learnt = message["role"] == "assistant"
        page.content(message, learnt)
        for number, call in enumerate(calls):
            page.text("\n" if is_open or message.get("content") or number else "", learnt)
            page.text(call_text(call), learnt)
        place += 1 + len(results)
        is_open = False
        if results:
            is_open = messages[place]["role"] == "assistant" if place < len(messages) else answer_follows
            _write_results(page, results)
            if not is_open:
                page.text(": ", learnt=False)
        if not is_open:
            page.end_turn(learnt and not results)
    if answer_follows and not is_open:
        page.open_turn("assistant")
    page.end_text()
    return page.runs


def _system(page: _Page, messages: Sequence[Message], tools: Sequence[Any], parallel: bool) -> None:
    page.open_turn("system")
    if messages and messages[0]["role"] == "system":
        page.content(messages[0], learnt=False)
    else:
        page.text(DEFAULT_SYSTEM, learnt=False)
    if tools:
        page.text("\n\n" + tools_text(tools, parallel), learnt=False)
    page.end_turn(learnt=False)


def _results(messages: Sequence[Message], place: int) -> list[Message]:
    end = place + 1
    while end < len(messages) and messages[end]["role"] == "tool":
        end += 1
    return list(messages[place + 1 : end])


def _write_results(page: _Page, results: Sequence[Message]) -> None:
    for number, result in enumerate(results):
        # The model itself writes the first keyword: it is where Qwen-Agent stops it and calls the tools.
        page.text(f"\n{RESULT}", learnt=number == 0)
        page.text(": ", learnt=False)
        page.content(result, learnt=False)
    page.text(f"\n{RETURN}", learnt=False)


def _flag(sample: Mapping[str, Any], name: str) -> bool:
    value = sample.get(name, False)
    if not isinstance(value, bool):
        raise FormatError(f"`{name}` is true or false, got {str(value)[:80]}")
    return value


def _messages(sample: Mapping[str, Any]) -> list[Message]:
    messages = sample["messages"]
    if not isinstance(messages, list) or not messages:
        raise FormatError("`messages` must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
            raise FormatError(f"a message needs a role of {', '.join(ROLES)} and content, got {str(message)[:80]}")
        content = message["content"]
        if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
            _check_parts(content)
    return messages


def _document_parts(sample: Mapping[str, Any]) -> list[Part]:
    if "parts" not in sample:
        raise FormatError(f"a sample needs `parts` or `messages`, got the keys {sorted(sample)}")
    wrong = [name for name in ("tools", "parallel_calls", "add_vision_id") if sample.get(name)]
    if wrong:
        raise FormatError(f"{', '.join(wrong)}: for conversations only; write out in `parts` what should be read")
    _check_parts(sample["parts"])
    return sample["parts"]


def _check_parts(parts: Any) -> None:
    if not isinstance(parts, list):
        raise FormatError(f"parts must be a list, got {type(parts).__name__}")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        media = kind in VISION_NAMES and type(part.get("media")) is int and 0 <= part["media"] < _MAX_MEDIA
        if kind not in TEXT_TYPES and not media:
            raise FormatError(
                "a part is a text or ref with `text`, a box with `box` and `scale`, or an image or video with `media`, "
                f"got {str(part)[:80]}"
            )


def _last(wanted: Sequence[bool], what: str) -> int:
    if not any(wanted):
        raise FormatError(f"the sample has no {what} that could be the answer")
    return len(wanted) - 1 - list(reversed(wanted)).index(True)
