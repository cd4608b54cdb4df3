"""`triptych inspect`: a source of samples in lines of text."""

import json
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.encoding.encode import encode_sample
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.index.file import KINDS, open_index
from data.index.mmap_text import LONGEST_DOCUMENT, TextIndex, is_text
from data.loading.rows import SourceIndex
from data.store.config import OssConfig
from data.types import EncodedSample
from launch.answering.questions import prompt_text

_WIDTH = 110
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_HARMLESS = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # the joiners spell Persian, Hindi and emoji


def open_named(name: str, index: Path | None, data: DataConfig | None, oss: OssConfig) -> SourceIndex:
    """The index of a source as `triptych inspect` names it; in the folder `index`, or where the recipe says it lies.

    Raises MismatchError if it is absent or damaged.
    """
    if is_text(name):
        return TextIndex(name, data.tokens_per_row if data else LONGEST_DOCUMENT)
    of_recipe = {source.path: source.index for source in data.sources} if data else {}
    return open_index(name, index or of_recipe.get(name), oss)


def source_lines(name: str, index: SourceIndex) -> Iterator[str]:
    """What the index of the source `name` says: samples, bytes, text tokens, pictures and clips."""
    tokens = index.columns["num_text_tokens"]
    if isinstance(index, TextIndex):
        yield f"{name}: {len(index)} documents of tokens"
        yield f"tokens a document: {_spread(tokens)}, {int(tokens.sum())} in all"
        return
    size = sum(shard.size for shard in index.shards)
    yield f"{name}: {len(index)} samples in {len(index.shards)} shards, {size / 1e6:.1f} MB"
    yield f"text tokens a sample: {_spread(tokens)}, {int(tokens.sum())} in all"
    for number, kind in enumerate(KINDS):
        of_kind = np.flatnonzero(index.columns["media_kind"] == number)
        if len(of_kind):
            height, width = (index.columns[f"media_{side}"][of_kind] for side in ("height", "width"))
            yield f"{kind}s: {len(of_kind)}, height {_spread(height)}, width {_spread(width)}"
    refused = index.meta.get("refused", [])
    if refused:
        yield f"left out when indexing: {len(refused)}, the first {refused[0]}"


def sample_lines(index: SourceIndex, number: int, data: DataConfig | None) -> Iterator[str]:
    """One sample: where it lies, its media, its JSON, and with `data` what a run is fed: tokens, and which are learnt.

    Raises ValueError for a number that the source does not have.
    """
    if not 0 <= number < len(index):
        raise ValueError(f"the source has samples 0 to {len(index) - 1}, not {number}")
    if isinstance(index, TextIndex):
        yield f"sample {number}, at {index.where(number)}"
        if data is not None:
            tokenizer = load_tokenizer(data.tokenizer)
            index.check(tokenizer)
            yield from _marked(index.encode(number, tokenizer.vocab_size), tokenizer)
        return
    raw = index.read_raw(number)
    yield f"sample {number}, key {visible(raw.key)}, at {index.where(number)}"
    for row, size in enumerate(index.media_sizes(number)):
        clip = f", {size.frames} frames at {size.fps:g} a second" if size.kind == "video" else ""
        yield f"visual part {row}: {size.kind} {size.height}x{size.width}{clip}"
    yield from textwrap.wrap(json.dumps(raw.content, ensure_ascii=True), _WIDTH)
    if "messages" in raw.content or "parts" in raw.content:
        yield f"asked: {visible(prompt_text(raw.content))}"
    if data is not None:
        tokenizer = load_tokenizer(data.tokenizer)
        index.check(tokenizer)
        sizes = index.media_sizes(number)
        yield from _marked(encode_sample(raw.content, sizes, tokenizer, data.image, data.video), tokenizer)


def _marked(encoded: EncodedSample, tokenizer: Tokenizer) -> Iterator[str]:
    """The encoded text; what is learnt stands between [[ and ]], a run of visual tokens is one word."""
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
    yield from visible(text).splitlines()


def _spread(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()}, mean {values.mean():.1f}"


def visible(text: str) -> str:
    """`text` with characters that are not seen, or that turn others round, spelled by their numbers."""
    return "".join(
        f"<U+{ord(one):04X}>" if unicodedata.category(one) in _UNSEEN and one not in _HARMLESS else one for one in text
    )
