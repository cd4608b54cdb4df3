"""A sample's JSON to integers: tokens, targets, positions and grids, without looking at a pixel.

The format is in docs/data_format.md, the conversation format in chat_template.py. T tokens, G grids, V visual tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.chat_template import CHAT_TEMPLATE, DEFAULT_SYSTEM
from data.config import IGNORE, ImageConfig, VideoConfig
from data.errors import FormatError, MismatchError
from data.images import image_grid
from data.positions import mrope_positions
from data.tokenizer import Tokenizer
from data.types import EncodedSample, Grid, MediaSize
from data.video import video_grid

ENCODING_VERSION = 1  # raise it with any change here that gives other ids for the same sample
ROLES = ("system", "user", "assistant")
TEMPLATE_DIGEST = hashlib.blake2b(f"{ENCODING_VERSION}\n{CHAT_TEMPLATE}".encode(), digest_size=16).hexdigest()


def media_grid(size: MediaSize, image: ImageConfig, video: VideoConfig) -> Grid:
    """The grid of one picture or clip; raises SampleError for sizes that no rule covers."""
    if size.kind == "image":
        return image_grid(size.height, size.width, image)
    return video_grid(size.frames, size.fps, size.height, size.width, image, video)


def visual_parts(sample: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(kind, member number) of each picture and clip, in order of appearance. Raises FormatError."""
    found = []
    for part in _all_parts(sample):
        if part["type"] != "text":
            found.append((part["type"], part["media"]))
    return found


def encode_sample(
    sample: Mapping[str, Any],
    media_sizes: Sequence[MediaSize],
    tokenizer: Tokenizer,
    image: ImageConfig,
    video: VideoConfig,
) -> EncodedSample:
    """Encode a whole sample with its targets.

    Args:
        sample: the decoded KEY.json, with `parts` (pretraining) or `messages` (chat).
        media_sizes: one for each visual part, in order of appearance.

    Supervised are: all text of a document except its prefix, and its end-of-text token; of a conversation the
    assistant's content, its <|im_end|> and the newline after it. Raises FormatError, MismatchError, SampleError.
    """
    row = _Writer(tokenizer, [media_grid(size, image, video) for size in media_sizes], [s.kind for s in media_sizes])
    if "messages" in sample:
        for message in _with_system(sample["messages"]):
            row.message(message)
    else:
        for part in _parts(sample):
            row.part(part, supervised=not part.get("prefix", False))
        row.special(tokenizer.ids.end_of_text, supervised=True)
    return row.finish(all_media=True)


def encode_prompt(
    sample: Mapping[str, Any],
    media_sizes: Sequence[MediaSize],
    tokenizer: Tokenizer,
    image: ImageConfig,
    video: VideoConfig,
) -> EncodedSample:
    """Encode what comes before the answer: the last assistant turn, or the last supervised text of a document.

    All targets are IGNORE. `media_sizes` as for `encode_sample`. Raises also FormatError if there is no answer.
    """
    row = _Writer(tokenizer, [media_grid(size, image, video) for size in media_sizes], [s.kind for s in media_sizes])
    if "messages" in sample:
        messages = _with_system(sample["messages"])
        last = _last([message["role"] == "assistant" for message in messages], "assistant turn")
        for message in messages[:last]:
            row.message(message)
        row.special(tokenizer.ids.im_start)
        row.text("assistant\n", supervised=False)
    else:
        parts = _parts(sample)
        supervised = [part["type"] == "text" and not part.get("prefix", False) for part in parts]
        for part in parts[: _last(supervised, "supervised text")]:
            row.part(part, supervised=False)
    row.supervised = [False] * len(row.tokens)
    return row.finish(all_media=False)


def count_text_tokens(sample: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """Tokens of the encoded sample that are not visual ones (text, markers and template). Raises FormatError."""
    ids = tokenizer.ids
    kinds = [kind for kind, _ in visual_parts(sample)]
    one = Grid(time=1, height=2, width=2, patch_size=1, merge_size=2)
    row = _Writer(tokenizer, [one] * len(kinds), kinds)
    if "messages" in sample:
        for message in _with_system(sample["messages"]):
            row.message(message)
    else:
        for part in _parts(sample):
            row.part(part, supervised=True)
        row.special(ids.end_of_text)
    return len(row.tokens) - len(kinds)


@dataclass(slots=True)
class _Writer:
    """Grows one sample's lists. Adjacent texts of a message are tokenised together, as the chat template does."""

    tokenizer: Tokenizer
    grids: list[Grid]
    kinds: Sequence[str]
    tokens: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    spans: list[tuple[int, tuple[int, int, int]]] = field(default_factory=list)
    media: list[int] = field(default_factory=list)

    def special(self, token: int, supervised: bool = False) -> None:
        self.tokens.append(token)
        self.supervised.append(supervised)

    def text(self, text: str, supervised: bool, header: int = 0) -> None:
        """`header` leading characters are never supervised; a token that begins in them belongs to them."""
        ids, starts = self.tokenizer.encode_with_starts(text)
        self.tokens.extend(ids)
        self.supervised.extend(supervised and start >= header for start in starts)

    def visual(self, kind: str, member: int) -> None:
        number = len(self.spans)
        if number >= len(self.grids) or self.kinds[number] != kind:
            raise MismatchError(f"visual part {number} is a {kind}, but the sizes given are {list(self.kinds)}")
        ids, grid = self.tokenizer.ids, self.grids[number]
        self.special(ids.vision_start)
        self.spans.append((len(self.tokens), grid.merged))
        self.tokens.extend([ids.image_pad if kind == "image" else ids.video_pad] * grid.num_tokens)
        self.supervised.extend([False] * grid.num_tokens)
        self.special(ids.vision_end)
        self.media.append(member)

    def part(self, part: Mapping[str, Any], supervised: bool) -> None:
        if part["type"] == "text":
            self.text(part["text"], supervised)
        else:
            self.visual(part["type"], part["media"])

    def message(self, message: Mapping[str, Any]) -> None:
        supervised = message["role"] == "assistant"
        text = message["role"] + "\n"
        header = len(text)
        self.special(self.tokenizer.ids.im_start)
        for part in _content(message):
            if part["type"] == "text":
                text += part["text"]
                continue
            self.text(text, supervised, header)
            self.visual(part["type"], part["media"])
            text, header = "", 0
        self.text(text, supervised, header)
        self.special(self.tokenizer.ids.im_end, supervised)
        self.text("\n", supervised)

    def finish(self, all_media: bool) -> EncodedSample:
        if all_media and len(self.spans) != len(self.grids):
            raise MismatchError(f"{len(self.grids)} sizes were given for {len(self.spans)} visual parts")
        tokens = np.array(self.tokens, dtype=np.int64)
        targets = np.full_like(tokens, IGNORE)
        targets[:-1] = np.where(self.supervised[1:], tokens[1:], IGNORE)
        runs = [
            np.arange(start, start + grid.num_tokens) for (start, _), grid in zip(self.spans, self.grids, strict=False)
        ]
        shown = self.grids[: len(self.spans)]
        return EncodedSample(
            tokens=tokens,
            targets=targets,
            positions=mrope_positions(len(tokens), self.spans),
            grids=np.array([grid.patches for grid in shown], dtype=np.int64).reshape(-1, 3),
            visual_index=np.concatenate(runs) if runs else np.empty(0, dtype=np.int64),
            media=tuple(self.media),
        )


def _with_system(messages: Any) -> list[Mapping[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise FormatError("`messages` must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
            raise FormatError(f"a message needs a role of {', '.join(ROLES)} and content, got {str(message)[:80]}")
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    return messages


def _content(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else _checked(content)


def _parts(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "parts" not in sample:
        raise FormatError(f"a sample needs `parts` or `messages`, got the keys {sorted(sample)}")
    return _checked(sample["parts"])


def _all_parts(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "messages" in sample:
        return [part for message in _with_system(sample["messages"]) for part in _content(message)]
    return _parts(sample)


def _checked(parts: Any) -> list[Mapping[str, Any]]:
    if not isinstance(parts, list):
        raise FormatError(f"parts must be a list, got {type(parts).__name__}")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = kind == "text" and isinstance(part.get("text"), str)
        media = kind in ("image", "video") and type(part.get("media")) is int and 0 <= part["media"] < 65536
        if not (text or media):
            raise FormatError(f"a part is a text with `text` or an image or video with `media`, got {str(part)[:80]}")
    return parts


def _last(wanted: Sequence[bool], what: str) -> int:
    if not any(wanted):
        raise FormatError(f"the sample has no {what} that could be the answer")
    return len(wanted) - 1 - list(reversed(wanted)).index(True)
