"""From an item (media, opening, questions and answers) to the two stored forms: pretraining document and chat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data.samples.phrases import Turn

Part = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """One stored picture or clip. kind: "image" or "video"; suffix: file name ending without a dot."""

    kind: str
    suffix: str
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A sample before its form is chosen.

    opening: text and media in the order they are shown; turns: what is asked about them, last one scored when held out;
    origin: the scans, scene regions and strings it was made of, by which the split is checked.
    """

    opening: tuple[str | Media, ...]
    turns: tuple[Turn, ...]
    origin: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def media(self) -> tuple[Media, ...]:
        """Media in order of appearance."""
        return tuple(part for part in self.opening if isinstance(part, Media))


def _opening_parts(item: Item, *, prefix: bool) -> list[Part]:
    parts: list[Part] = []
    number = 0
    for part in item.opening:
        if isinstance(part, Media):
            parts.append({"type": part.kind, "media": number})
            number += 1
        else:
            parts.append({"type": "text", "text": part, **({"prefix": True} if prefix else {})})
    return parts


def as_document(item: Item, source: str) -> dict[str, Any]:
    """A pretraining document: opening and questions are its declared prefix, every answer is learnt."""
    parts = _opening_parts(item, prefix=True)
    for number, (question, answer) in enumerate(item.turns):
        if question:
            parts.append({"type": "text", "text": ("\n" if number else "") + question + "\n", "prefix": True})
        parts.append({"type": "text", "text": answer})
    return {"source": source, "parts": parts, "origin": item.origin}


def as_chat(item: Item, source: str) -> dict[str, Any]:
    """A conversation: the first user turn shows the media, every assistant turn is learnt."""
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(item.turns):
        if number:
            content: str | list[Part] = question
        else:
            content = _opening_parts(item, prefix=False)
            content.append({"type": "text", "text": question})
            if not item.media:
                content = "".join(part["text"] for part in content)
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": answer})
    return {"source": source, "messages": messages, "origin": item.origin}
