"""One generator for each kind of data that Qwen2-VL is trained on: small, and the same sample for the same numbers.

docs/data_format.md shows sample 0 of seed 0 of each. `python -m data.samples.kinds --out DIR` writes each kind as a
source of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.formats.shards import write_shards
from data.samples import phrases
from data.samples.clips import DIRECTIONS, FRAMES_PER_STEP, encode_h264, move_card
from data.samples.digits import CARD, draw_card
from data.samples.items import Item, Media, Part, as_chat, as_document
from data.samples.pictures import choose_cells, framed, paste, store_picture
from data.samples.scenes import SCENES, any_scene, draw_scene
from data.samples.splits import rng_for
from data.samples.steps import agent
from data.samples.tasks import TASKS
from data.samples.text import SMALL_TALK, prose
from data.samples.words import choose_string, render
from data.types import RawSample

Made = tuple[dict[str, Any], Sequence[Media]]
KNOWN = {
    "bricks": "Bricks are blocks of clay, burnt so that they last for centuries.",
    "cat": "A cat is an animal that people have kept for thousands of years, first to catch mice.",
    "cells": "Cells are what every living thing is made of; dyes make them visible under a microscope.",
    "coffee": "Coffee is brewed from the roasted seeds of a bush that comes from Ethiopia.",
    "coins": "Coins are money of metal; these were found in Pompeii.",
    "flower": "A flower is the part of a plant in which seeds grow.",
    "galaxies": "Galaxies are islands of billions of stars; the Hubble telescope took this picture.",
    "grass": "Grass covers a quarter of all land.",
    "moon": "The moon circles the earth in 27 days.",
    "motorcycle": "A motorcycle has two wheels and an engine.",
    "retina": "The retina is the skin at the back of the eye that sees light.",
    "temple": "A temple is a house of prayer; this one stands in China.",
}


def image_text_pair(rng: np.random.Generator) -> Made:
    """A picture and what was written beside it."""
    return _document(TASKS["captions"].draw(rng, "train", chat=False))


def classification(rng: np.random.Generator) -> Made:
    """A picture and its class; the list of classes is a prefix."""
    media, digit, _ = _picture(rng)
    classes = {"type": "text", "text": "One of 0 1 2 3 4 5 6 7 8 9: ", "prefix": True}
    return {"parts": [_image(0), classes, _text(str(digit))]}, [media]


def ocr(rng: np.random.Generator) -> Made:
    """Every line of a page with the box it stands in, measured in pixels."""
    lines, media, size = _page(rng, 2)
    parts = [_image(0)]
    for number, line in enumerate(lines):
        box = [0, number * CARD, len(line) * CARD, (number + 1) * CARD]
        parts += [{"type": "ref", "text": line}, {"type": "box", "box": box, "scale": size}]
    return {"parts": parts}, [media]


def document_parsing(rng: np.random.Generator) -> Made:
    """A page as Markdown: its heading, and its other lines as a list."""
    (heading, *others), media, _ = _page(rng, 3)
    answer = f"# {heading}\n\n" + "\n".join(f"- {line}" for line in others)
    return {"messages": [_user(_image(0), _text("Write this page as Markdown.")), _says(answer)]}, [media]


def interleaved_article(rng: np.random.Generator) -> Made:
    """Text and pictures in reading order, all of the text learnt."""
    shown = [_picture(rng) for _ in range(2)]
    parts = [_text("A walk with two cards.\n\n")]
    for number, (_, digit, scene) in enumerate(shown):
        parts += [_text(f"At the {scene} we found the card "), _image(number), _text(f", a {digit}.\n")]
    parts.append(_text(f"Together that makes {shown[0][1] + shown[1][1]}."))
    return {"parts": parts}, [media for media, _, _ in shown]


def question_answering(rng: np.random.Generator) -> Made:
    """Questions about one picture."""
    media, digit, scene = _picture(rng)
    turns = (phrases.which_digit(digit), phrases.which_scene(scene))
    return _chat(Item(opening=(media,), turns=turns))


def multi_picture(rng: np.random.Generator) -> Made:
    """Pictures compared by their numbers, which `add_vision_id` writes before each."""
    shown = [_picture(rng, digit) for digit in rng.permutation(10)[:3]]
    larger = int(np.argmax([digit for _, digit, _ in shown])) + 1
    asked = _user(*(_image(number) for number in range(3)), _text("Which picture shows the largest digit?"))
    content = {"add_vision_id": True, "messages": [asked, _says(f"Picture {larger}.")]}
    return content, [media for media, _, _ in shown]


def grounding(rng: np.random.Generator) -> Made:
    """Both ways: the box of what is named, and what is in a box."""
    rows = columns = phrases.GROUNDING_CELLS
    digits = [int(digit) for digit in rng.permutation(10)[:2]]
    cells = choose_cells(rng, rows, columns, 2)
    scene = any_scene(rng, "train", columns * CARD, rows * CARD)
    media = store_picture(rng, paste(scene, [draw_card(rng, "train", digit) for digit in digits], cells))
    size = [columns * CARD, rows * CARD]
    corners = [[column * CARD, row * CARD, (column + 1) * CARD, (row + 1) * CARD] for row, column in cells]
    named = {"type": "ref", "text": f"the card with a {digits[0]}"}
    shares = [round(value / (columns * CARD), 4) for value in corners[1]]
    found = {"type": "box", "box": corners[0], "scale": size}
    asked = _user(_text("Which digit is in "), {"type": "box", "box": shares, "scale": 1}, _text("?"))
    messages = [_user(_image(0), _text("Find "), named), _says([named, found]), asked, _says(str(digits[1]))]
    return {"messages": messages}, [media]


def image_knowledge(rng: np.random.Generator) -> Made:
    """What is known of a thing beyond what the picture shows."""
    media, _, scene = _picture(rng)
    return {"messages": [_user(_image(0), _text("What is behind the card?")), _says(KNOWN[scene])]}, [media]


def video_question(rng: np.random.Generator) -> Made:
    """A question about a clip."""
    return _chat(TASKS["clips"].draw(rng, "train", chat=True))


def video_dialogue(rng: np.random.Generator) -> Made:
    """Several questions about one clip."""
    frames, digit, scene, direction = _film(rng, 1)
    turns = (("What happens?", f"A card moves {direction}."), phrases.which_digit(digit), phrases.which_scene(scene))
    return _chat(Item(opening=(_clip(frames[0]),), turns=turns))


def video_stream(rng: np.random.Generator) -> Made:
    """Turns between successive clips of one video: each answer knows only what was shown until then."""
    pieces, digit, _, direction = _film(rng, 3)
    asked = ("Tell me what you see.", "And now?", "Which way does it move?")
    said = (f"A card with the digit {digit}.", "It has moved.", direction)
    messages = []
    for number, (question, answer) in enumerate(zip(asked, said, strict=True)):
        messages += [_user({"type": "video", "media": number}, _text(question)), _says(answer)]
    return {"messages": messages}, [_clip(piece) for piece in pieces]


def pure_text(rng: np.random.Generator) -> Made:
    """Prose, without a picture."""
    return {"parts": [_text(prose(rng, "train"))]}, []


def text_dialogue(rng: np.random.Generator) -> Made:
    """Talk, without a picture."""
    chosen = [SMALL_TALK[int(place)] for place in rng.permutation(len(SMALL_TALK))[:2]]
    return _chat(Item(opening=(), turns=tuple(chosen)))


KINDS: dict[str, Callable[[np.random.Generator], Made]] = {
    make.__name__: make
    for make in (
        image_text_pair, classification, ocr, document_parsing, interleaved_article, question_answering, multi_picture,
        grounding, image_knowledge, video_question, video_dialogue, video_stream, agent, pure_text,
        text_dialogue,
    )
}  # fmt: skip


def kind_sample(kind: str, seed: int, number: int) -> RawSample:
    """Sample `number` of one of KINDS."""
    content, media = KINDS[kind](rng_for(seed, f"kinds/{kind}", "train", number))
    kept = {name: value for name, value in content.items() if name not in ("origin", "source")}
    stored = {place: (one.suffix, one.content) for place, one in enumerate(media)}
    return RawSample(key=f"{kind}-{number:06d}", content={"source": kind, **kept}, media=stored)


def _document(item: Item) -> Made:
    return as_document(item, ""), item.media


def _chat(item: Item) -> Made:
    return as_chat(item, ""), item.media


def _image(number: int) -> Part:
    return {"type": "image", "media": number}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _user(*parts: Part) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def _says(content: str | list[Part]) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _picture(rng: np.random.Generator, digit: int | None = None) -> tuple[Media, int, str]:
    """A card on a photograph, the digit on it, and what the photograph shows."""
    name = SCENES[int(rng.integers(len(SCENES)))]
    scene = draw_scene(rng, "train", name, 2 * CARD, 2 * CARD)
    card = draw_card(rng, "train", int(rng.integers(10)) if digit is None else int(digit))
    return store_picture(rng, paste(scene, [card], choose_cells(rng, 2, 2, 1))), card.digit, name


def _page(rng: np.random.Generator, lines: int) -> tuple[list[str], Media, list[int]]:
    """Words below each other, the picture of them, and its [width, height] before it was stored in an uneven size."""
    words = [choose_string(rng, "train") for _ in range(lines)]
    width = max(len(word) for word in words) * CARD
    rows = [render(rng, "train", word, CARD).pixels for word in words]
    filled = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), mode="edge") for row in rows]
    return words, store_picture(rng, np.concatenate(filled)), [width, lines * CARD]


def _film(rng: np.random.Generator, pieces: int) -> tuple[list[np.ndarray], int, str, str]:
    """A card that moves over a photograph, cut into pieces of equal length; with its digit, scene and direction."""
    scene = any_scene(rng, "train", 3 * CARD, 3 * CARD)
    card = draw_card(rng, "train", int(rng.integers(10)))
    direction = tuple(DIRECTIONS)[int(rng.integers(len(DIRECTIONS)))]
    start = choose_cells(rng, 3, 3, 1)[0]
    frames = framed(move_card(scene.pixels, card.pixels, start, direction))
    length = max(2, len(frames) // pieces // FRAMES_PER_STEP * FRAMES_PER_STEP)
    return [frames[n * length : (n + 1) * length] for n in range(pieces)], card.digit, scene.name, direction


def _clip(frames: np.ndarray) -> Media:
    return Media(kind="video", suffix="mp4", content=encode_h264(frames))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m data.samples.kinds", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder; each kind becomes DIR/KIND")
    parser.add_argument("--samples", type=int, default=8, help="of each kind; default: 8")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for kind in KINDS:
        samples = (kind_sample(kind, options.seed, number) for number in range(options.samples))
        write_shards(options.out / kind, kind, samples, samples_per_shard=1000)
    print(f"{len(KINDS)} sources of {options.samples} samples in {options.out}")


if __name__ == "__main__":
    main()
