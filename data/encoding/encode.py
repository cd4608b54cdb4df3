"""A sample's JSON to integers: tokens, targets, positions and grids, without looking at a pixel.

The format is in docs/data_format.md; what is written of a sample, and what of that is learnt, is render.py's.
T tokens, G grids, V visual tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.config import IGNORE, ImageConfig, VideoConfig
from data.encoding.chat_template import CHAT_TEMPLATE
from data.encoding.positions import mrope_positions
from data.encoding.render import Run, Special, Text, Visual, render_prompt, render_sample
from data.encoding.tokenizer import Tokenizer
from data.errors import MismatchError
from data.types import EncodedSample, Grid, MediaSize
from data.visual.images import image_grid
from data.visual.video import video_grid

ENCODING_VERSION = 1  # raise it with any change here or in render.py that gives other ids for the same sample
TEMPLATE_DIGEST = hashlib.blake2b(f"{ENCODING_VERSION}\n{CHAT_TEMPLATE}".encode(), digest_size=16).hexdigest()


def media_grid(size: MediaSize, image: ImageConfig, video: VideoConfig) -> Grid:
    """The grid of one picture or clip; raises SampleError for sizes that no rule covers."""
    if size.kind == "image":
        return image_grid(size.height, size.width, image)
    return video_grid(size.frames, size.fps, size.height, size.width, image, video)


def visual_parts(sample: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(kind, member number) of each picture and clip, in order of appearance. Raises FormatError."""
    return [(run.kind, run.member) for run in render_sample(sample) if isinstance(run, Visual)]


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
    row.write(render_sample(sample))
    if len(row.spans) != len(row.grids):
        raise MismatchError(f"{len(row.grids)} sizes were given for {len(row.spans)} visual parts")
    return row.finish()


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
    row.write(render_prompt(sample))
    row.supervised = [False] * len(row.tokens)
    return row.finish()


@dataclass(slots=True)
class _Writer:
    """Grows one sample's lists."""

    tokenizer: Tokenizer
    grids: list[Grid]
    kinds: Sequence[str]
    tokens: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    spans: list[tuple[int, tuple[int, int, int]]] = field(default_factory=list)
    media: list[int] = field(default_factory=list)

    def write(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if isinstance(run, Text):
                self.text(run)
            elif isinstance(run, Special):
                self.special(getattr(self.tokenizer.ids, run.name), run.learnt)
            else:
                self.visual(run)

    def special(self, token: int, supervised: bool = False) -> None:
        self.tokens.append(token)
        self.supervised.append(supervised)

    def text(self, run: Text) -> None:
        """A token over the border of two pieces belongs to the one that it begins in."""
        ids, starts = self.tokenizer.encode_with_starts("".join(text for text, _ in run.pieces))
        self.tokens.extend(ids)
        end, place = 0, 0
        for text, learnt in run.pieces:
            end += len(text)
            first = place
            while place < len(starts) and starts[place] < end:
                place += 1
            self.supervised.extend([learnt] * (place - first))

    def visual(self, run: Visual) -> None:
        number = len(self.spans)
        if number >= len(self.grids) or self.kinds[number] != run.kind:
            raise MismatchError(f"visual part {number} is a {run.kind}, but the sizes given are {list(self.kinds)}")
        ids, grid = self.tokenizer.ids, self.grids[number]
        self.special(ids.vision_start)
        self.spans.append((len(self.tokens), grid.merged))
        self.tokens.extend([ids.image_pad if run.kind == "image" else ids.video_pad] * grid.num_tokens)
        self.supervised.extend([False] * grid.num_tokens)
        self.special(ids.vision_end)
        self.media.append(run.member)

    def finish(self) -> EncodedSample:
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
