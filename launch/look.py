"""`triptych inspect`: a source of samples in lines of text."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.encode import encode_sample
from data.index_file import KINDS, Index, open_index
from data.tokenizer import load_tokenizer
from launch.questions import prompt_text

_WIDTH = 110


def source_lines(folder: str | Path) -> Iterator[str]:
    """What the index of a source says: samples, bytes, text tokens, pictures and clips."""
    index = open_index(folder)
    tokens = index.columns["num_text_tokens"]
    size = sum(shard.size for shard in index.shards)
    yield f"{folder}: {len(index)} samples in {len(index.shards)} shards, {size / 1e6:.1f} MB"
    yield f"text tokens a sample: {_spread(tokens)}, {int(tokens.sum())} in all"
    for number, kind in enumerate(KINDS):
        of_kind = np.flatnonzero(index.columns["media_kind"] == number)
        if len(of_kind):
            height, width = (index.columns[f"media_{side}"][of_kind] for side in ("height", "width"))
            yield f"{kind}s: {len(of_kind)}, height {_spread(height)}, width {_spread(width)}"
    refused = index.meta.get("refused", [])
    if refused:
        yield f"left out when indexing: {len(refused)}, the first {refused[0]}"


def sample_lines(folder: str | Path, number: int, data: DataConfig | None) -> Iterator[str]:
    """One sample: where it lies, its media, its JSON, and with `data` what a run is fed: tokens, and which are learnt.

    Raises ValueError for a number that the source does not have.
    """
    index = open_index(folder)
    if not 0 <= number < len(index):
        raise ValueError(f"{folder} has samples 0 to {len(index) - 1}, not {number}")
    raw = index.read_raw(number)
    yield f"sample {number}, key {raw.key}, at {index.where(number)}"
    for row, size in enumerate(index.media_sizes(number)):
        clip = f", {size.frames} frames at {size.fps:g} a second" if size.kind == "video" else ""
        yield f"visual part {row}: {size.kind} {size.height}x{size.width}{clip}"
    yield from textwrap.wrap(json.dumps(raw.content, ensure_ascii=True), _WIDTH)
    if "messages" in raw.content or "parts" in raw.content:
        yield f"asked: {prompt_text(raw.content)}"
    if data is not None:
        yield from _supervised(index, number, data)


def _supervised(index: Index, number: int, data: DataConfig) -> Iterator[str]:
    """The encoded text; what is learnt stands between [[ and ]], a run of visual tokens is one word."""
    raw = index.read_raw(number)
    tokenizer = load_tokenizer(data.tokenizer)
    index.check(tokenizer)
    encoded = encode_sample(raw.content, index.media_sizes(number), tokenizer, data.image, data.video)
    learnt = np.zeros(len(encoded.tokens) + 1, dtype=bool)
    learnt[1:-1] = encoded.targets[:-1] >= 0
    visual = np.zeros(len(encoded.tokens), dtype=bool)
    visual[encoded.visual_index] = True
    text, start = "", 0
    bounds = np.flatnonzero((np.diff(learnt[:-1].astype(int)) != 0) | (np.diff(visual.astype(int)) != 0)) + 1
    for end in [*bounds, len(encoded.tokens)]:
        piece = f"<{end - start} visual>" if visual[start] else tokenizer.decode(encoded.tokens[start:end].tolist())
        text += f"[[{piece}]]" if learnt[start] else piece
        start = end
    yield f"{len(encoded.tokens)} tokens, {int((encoded.targets >= 0).sum())} of them supervised:"
    yield from text.splitlines()


def _spread(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()}, mean {values.mean():.1f}"
