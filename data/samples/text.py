"""Plain text and text chat.

A small language model with random weights knows no word, so it first reads: real prose from scikit-learn's data set
descriptions, small talk, sums, and the tasks' own questions over stand-ins such as "[7 grass]" written where a picture
would be. After that a picture only has to become what its stand-in was.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

import numpy as np

from data.samples import phrases
from data.samples.clips import DIRECTIONS
from data.samples.items import Item
from data.samples.scenes import SCENES
from data.samples.splits import Split, is_heldout
from data.samples.words import choose_string

DESCRIPTIONS = (
    "breast_cancer", "california_housing", "covtype", "diabetes", "digits", "iris", "kddcup99", "lfw", "linnerud",
    "olivetti_faces", "rcv1", "species_distributions", "twenty_newsgroups", "wine_data",
)  # fmt: skip
CHUNK_WORDS = 14

SMALL_TALK = (
    ("Hello!", "Hello."), ("Who are you?", "A helpful assistant."), ("Thank you.", "You are welcome."),
    ("Good morning.", "Good morning."), ("Can you see?", "Yes."), ("Bye.", "Bye."),
    ("What is a photograph?", "A picture made with light."), ("What is a clip?", "A short film."),
    ("Is a moon a digit?", "No."), ("Is a cat an animal?", "Yes."),
)  # fmt: skip


@cache
def _chunks() -> tuple[str, ...]:
    """Pieces of CHUNK_WORDS words of prose, in file order; a fifth of them is held out by position."""
    pieces = []
    for name in DESCRIPTIONS:
        text = files("sklearn").joinpath(f"datasets/descr/{name}.rst").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if re.search(r"[a-z]{3}", line) and not line.startswith((".", "="))]
        # Words in capitals would teach the tokenizer to merge capitals, and reading is spelled letter by letter.
        prose = re.sub(r"\b\w*[A-Z]{2,}\w*\b", "", " ".join(lines)).encode("ascii", "ignore").decode()
        words = re.sub(r"[`*|=_~-]{2,}", " ", prose).split()
        pieces += [" ".join(words[i : i + CHUNK_WORDS]) for i in range(0, len(words), CHUNK_WORDS)]
    return tuple(pieces)


def prose(rng: np.random.Generator, split: Split) -> str:
    """A few lines of a data set's description."""
    pieces = [piece for i, piece in enumerate(_chunks()) if (i % 5 == 0) == is_heldout(split)]
    return pieces[int(rng.integers(len(pieces)))]


def _digit(rng: np.random.Generator) -> int:
    return int(rng.integers(10))


def _scene(rng: np.random.Generator) -> str:
    return SCENES[int(rng.integers(len(SCENES)))]


def _card(digit: int, scene: str) -> str:
    return f"[{digit} {scene}]"


def _one_picture(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    digit, scene = _digit(rng), _scene(rng)
    turns = [phrases.which_digit(digit), phrases.which_scene(scene)]
    described = (phrases.DESCRIBE if chat else "", phrases.caption(digit, scene))
    turns = [described, *turns][:: 1 if rng.random() < 0.8 else -1] if chat or rng.random() < 0.5 else [described]
    return Item(opening=(_card(digit, scene),), turns=tuple(turns[:2]))


def _word(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    string = choose_string(rng, split)
    return Item(opening=(f"[{string}]",), turns=(phrases.what_word(string),))


def _pair(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    first = _digit(rng)
    second = first if rng.random() < 0.35 else _digit(rng)
    asked = [phrases.add_digits(first, second), phrases.same_digit(first, second), phrases.in_order(first, second)]
    turns = tuple(asked[int(i)] for i in rng.permutation(3))
    return Item(opening=(_card(first, _scene(rng)), _card(second, _scene(rng))), turns=turns)


def _owners(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    names = [phrases.NAMES[int(i)] for i in rng.permutation(len(phrases.NAMES))[:2]]
    held = [int(i) for i in rng.permutation(10)[:2]]
    opening = []
    for name, digit in zip(names, held, strict=True):
        opening += [f"{name} has", _card(digit, _scene(rng))]
    turns = tuple(phrases.whose_digit(names[int(i)], held[int(i)]) for i in rng.permutation(2))
    return Item(opening=tuple(opening), turns=turns)


def _place(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    rows = columns = phrases.GROUNDING_CELLS
    digit, row, column = _digit(rng), int(rng.integers(rows)), int(rng.integers(columns))
    stand_in = f"[{digit} at {column}/{columns} {row}/{rows}]"
    return Item(opening=(stand_in,), turns=(phrases.where_is(digit, phrases.cell_box((row, column), rows, columns)),))


def _motion(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    digit, direction = _digit(rng), tuple(DIRECTIONS)[int(rng.integers(4))]
    return Item(opening=(f"[{digit} {direction}]",), turns=(phrases.clip_turn(digit, direction),))


# Copying letters in order and joining a name to its card take longest to learn, so they come twice.
STAND_INS = (_one_picture, _word, _word, _pair, _owners, _owners, _place, _motion)


def plain_text(rng: np.random.Generator, split: Split, *, chat: bool = False) -> Item:
    """A pretraining document without pictures: prose or a stand-in."""
    if rng.random() < 0.04:
        return Item(opening=(), turns=(("", prose(rng, split)),))
    return STAND_INS[int(rng.integers(len(STAND_INS)))](rng, split, chat=False)


def text_chat(rng: np.random.Generator, split: Split, *, chat: bool = True) -> Item:
    """A conversation without pictures: small talk, sums, spelling, or a stand-in."""
    choice = rng.random()
    if choice < 0.1:
        return Item(opening=(), turns=(SMALL_TALK[int(rng.integers(len(SMALL_TALK)))],))
    if choice < 0.25:
        first, second = _digit(rng), _digit(rng)
        return Item(opening=(), turns=((f"What is {first} + {second}?", str(first + second)),))
    return STAND_INS[int(rng.integers(len(STAND_INS)))](rng, split, chat=True)
