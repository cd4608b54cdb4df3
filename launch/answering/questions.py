"""Held-out samples as prompts: what a model is shown before it answers, and what it should answer.

T tokens of a prompt, G grids, P patches, D floats of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig
from data.encoding.encode import encode_prompt, encode_sample
from data.encoding.grounding import part_text
from data.encoding.render import VISION_NAMES
from data.encoding.tokenizer import Tokenizer
from data.index.file import Index, open_index
from data.loading.media import PatchReader
from data.types import EncodedSample, Float32, MediaSize, RawSample
from data.visual.images import normalisation_table

GREY = 128  # the byte shown instead of every pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One sequence for the model. `encoded.targets` are all IGNORE unless a loss is wanted."""

    encoded: EncodedSample
    kinds: tuple[str, ...]  # (G,) image or video
    patches: Float32  # (P, D), grids one after the other


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt with its answer and how that is judged."""

    task: str
    number: int
    """Sample number in its held-out source, for those who want to show it."""
    text: str
    """The prompt for human eyes; a picture or clip is written as [image] or [video]."""
    expected: str
    metric: str
    prompt: Prompt


def read_questions(folder: Path, data: DataConfig, tokenizer: Tokenizer, limit: int | None = None) -> list[Question]:
    """The first `limit` held-out samples of a source folder that declare an answer, in stored order."""
    index = open_index(folder)
    index.check(tokenizer)
    reader = PatchReader(data.image, data.video)
    try:
        return [
            question
            for number in range(len(index) if limit is None else min(limit, len(index)))
            if (question := _question(index, number, data, tokenizer, reader)) is not None
        ]
    finally:
        reader.close()


def _question(
    index: Index, number: int, data: DataConfig, tokenizer: Tokenizer, reader: PatchReader
) -> Question | None:
    raw = index.read_raw(number)
    judged: dict[str, Any] | None = raw.content.get("eval")
    if judged is None:
        return None
    sizes = index.media_sizes(number)
    encoded = encode_prompt(raw.content, sizes, tokenizer, data.image, data.video)
    return Question(
        task=str(judged["task"]),
        number=number,
        text=prompt_text(raw.content),
        expected=str(judged["answer"]).strip(),
        metric=str(judged["metric"]),
        prompt=_prompt(encoded, raw, sizes, reader),
    )


def _prompt(encoded: EncodedSample, raw: RawSample, sizes: Sequence[MediaSize], reader: PatchReader) -> Prompt:
    shown = sizes[: len(encoded.media)]
    return Prompt(
        encoded=encoded, kinds=tuple(size.kind for size in shown), patches=reader.read(raw, encoded.media, shown)
    )


def prompt_text(content: dict[str, Any]) -> str:
    """What is asked, without template tokens and without the answer."""
    if "messages" in content:
        last = max(place for place, message in enumerate(content["messages"]) if message["role"] == "assistant")
        shown = [message["content"] for message in content["messages"][:last] if message["role"] != "system"]
    else:
        spoken = [place for place, part in enumerate(content["parts"]) if _is_answer(part)]
        shown = [content["parts"][: spoken[-1]]]
    return "\n".join(text if isinstance(text, str) else _parts_text(text or []) for text in shown).strip()


def answer_text(content: dict[str, Any]) -> str:
    """What follows the prompt: the last assistant turn, or the last supervised text of a document."""
    if "messages" in content:
        last = [message["content"] for message in content["messages"] if message["role"] == "assistant"][-1]
        return (last if isinstance(last, str) else _parts_text(last or [])).strip()
    return part_text([part for part in content["parts"] if _is_answer(part)][-1]).strip()


def prompt_of(index: Index, number: int, data: DataConfig, tokenizer: Tokenizer, reader: PatchReader) -> Prompt:
    """What a sample shows before its answer. Raises FormatError if it has none, SampleError if it cannot be read."""
    raw, sizes = index.read_raw(number), index.media_sizes(number)
    return _prompt(encode_prompt(raw.content, sizes, tokenizer, data.image, data.video), raw, sizes, reader)


def _is_answer(part: dict[str, Any]) -> bool:
    return part["type"] not in VISION_NAMES and not part.get("prefix", False)


def _parts_text(parts: list[dict[str, Any]]) -> str:
    return " ".join(f"[{part['type']}]" if part["type"] in VISION_NAMES else part_text(part).strip() for part in parts)


def grey_prompt(prompt: Prompt, data: DataConfig) -> Prompt:
    """The same prompt with every picture and clip painted grey, sizes unchanged."""
    colours = np.repeat(normalisation_table(data.image)[:, GREY], data.image.patch_dim // 3)
    return replace(prompt, patches=np.broadcast_to(colours, prompt.patches.shape).copy())


def caption_prompts(
    folder: Path, data: DataConfig, tokenizer: Tokenizer, limit: int | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Held-out documents with one picture each, with their targets: shown the right picture, and another's.

    The other picture is half the set away; the text and its targets stay, the grid comes with the picture.
    """
    index = open_index(folder)
    index.check(tokenizer)
    reader = PatchReader(data.image, data.video)
    count = len(index) if limit is None else min(limit, len(index))
    shift = count // 2
    right: list[Prompt] = []
    shuffled: list[Prompt] = []
    try:
        for number in range(count):
            content = index.read_raw(number).content
            for places, into in ((number, right), ((number + shift) % count, shuffled)):
                sizes, raw = index.media_sizes(places), index.read_raw(places)
                encoded = encode_sample(content, sizes, tokenizer, data.image, data.video)
                into.append(_prompt(encoded, raw, sizes, reader))
    finally:
        reader.close()
    return right, shuffled
