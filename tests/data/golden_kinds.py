"""Tokens and mask of one sample of each kind, written so that a reader can check them.

`python -m tests.data.golden_kinds` writes golden_kinds.json anew. It holds what `encode_sample` gave, read by a person;
that these are the ids of the chat template and Qwen's mask is held by test_kinds.py through transformers.
"""

import json
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from data.config import IGNORE, ImageConfig, VideoConfig
from data.encoding.encode import encode_sample, visual_parts
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.samples.kinds import KINDS, kind_sample
from data.samples.tokenizer import train_tokenizer
from data.types import EncodedSample, MediaSize
from data.visual.decode import ClipDecoder
from data.visual.pictures import image_size

FILE = Path(__file__).with_suffix(".json")
IMAGE = ImageConfig(min_pixels=28 * 28)
VIDEO = VideoConfig(min_pixels=28 * 28)
# What the little tokenizer of the golden file learns its words from; changing a line changes the whole file.
PROSE = (
    "You are a helpful assistant.", "system", "user", "assistant", "\nuser", "\nassistant", "Picture", "What", "Where",
    "\u273fFUNCTION\u273f", "\u273fARGS\u273f", "\u273fRESULT\u273f", "\u273fRETURN\u273f",
    "Which digit? Where is it? Which way does it move?",
    "Find the card with a digit. Picture 1: Which picture shows the largest digit?", "Write this page as Markdown.",
    "At the temple we found the card. Together that makes a walk with two cards.", "a cat on grass, coins, a flower",
    "# Tools ## You have access to the following tools: Parameters: type object properties required array integer",
    "Format the arguments as a JSON object. ## When you need to call a tool, please insert the following command in",
    "your reply, which can be called zero or multiple times according to your needs: FUNCTION: The tool to use, should",
    "be one of ARGS: The input of the tool RESULT: Tool results RETURN: Reply based on tool results. Images need to be",
    "rendered as", "tap: Tap a point of the screen. back: Close what is open. name description parameters point",
    "Add the two cards. I open the first card. It is a card. Now the other one. Tell me what you see. It has moved.",
    "up down left right What is behind the card? covers all land Ann Bob Eve Max has cells What happens? A card moves",
    "Hello! Who are you? Thank you. You are welcome. Good morning. What is a photograph? A picture made with light.",
)  # fmt: skip


def golden_tokenizer(folder: Path) -> Tokenizer:
    """Trained on PROSE, in `folder`."""
    train_tokenizer([line for line in PROSE for _ in range(8)], folder)
    return load_tokenizer(folder)


def measured(kind: str, number: int, decoder: ClipDecoder) -> tuple[dict[str, Any], list[MediaSize]]:
    """A sample of seed 0 and the sizes of its pictures and clips."""
    raw = kind_sample(kind, seed=0, number=number)
    sizes = []
    for shown, member in visual_parts(raw.content):
        data = raw.media[member][1]
        if shown == "video":
            sizes.append(decoder.probe(data))
        else:
            height, width = image_size(data)
            sizes.append(MediaSize(kind="image", height=height, width=width))
    return raw.content, sizes


def readable(encoded: EncodedSample, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Runs of tokens that are all learnt or all not; a run of one pad is written once with its length."""
    learnt = [False, *(target != IGNORE for target in encoded.targets[:-1].tolist())]
    rows = []
    for own, run in groupby(zip(encoded.tokens.tolist(), learnt, strict=True), key=lambda pair: pair[1]):
        tokens = []
        for token, same in groupby(token for token, _ in run):
            count = len(list(same))
            name = spelled(token, tokenizer)
            tokens += [f"{name} x{count}"] if name.endswith("_pad|>") else [name] * count
        rows.append({"learnt": own, "tokens": tokens})
    return rows


def spelled(token: int, tokenizer: Tokenizer) -> str:
    """The token's characters; where it is a part of one, its bytes as byte-level tokenizers write them."""
    text = tokenizer.decode([token])
    return text if "\ufffd" not in text else tokenizer.name(token)


def write() -> None:
    """Write FILE."""
    decoder = ClipDecoder(60.0)
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = golden_tokenizer(Path(folder))
        for kind in KINDS:
            encoded = encode_sample(*measured(kind, 0, decoder), tokenizer, IMAGE, VIDEO)
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in readable(encoded, tokenizer))
            blocks.append(f'"{kind}": [\n  {rows}\n]')
    decoder.close()
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
