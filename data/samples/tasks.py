"""One function a task: from a generator and a split to an item made of real material."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.samples import phrases
from data.samples.clips import DIRECTIONS, encode_h264, move_card
from data.samples.digits import CARD, Card, draw_card
from data.samples.items import Item, Media
from data.samples.pictures import choose_cells, framed, paste, resize, store_picture, uneven_size
from data.samples.scenes import SCENES, Scene, any_scene, draw_scene
from data.samples.splits import Split, is_heldout
from data.samples.words import choose_string, render

Origin = dict[str, list]


def _origin(cards: list[Card], scenes: list[Scene]) -> Origin:
    return {"scans": [card.scan for card in cards], "regions": [[scene.name, *scene.box] for scene in scenes]}


def _grid(rng: np.random.Generator, shapes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    return shapes[int(rng.integers(len(shapes)))]


def _one_card(rng: np.random.Generator, split: Split, digit: int) -> tuple[Media, Card, Scene]:
    rows, columns = _grid(rng, ((1, 2), (2, 1), (2, 2), (2, 2), (2, 3), (3, 2)))
    scene = draw_scene(rng, split, SCENES[int(rng.integers(len(SCENES)))], columns * CARD, rows * CARD)
    card = draw_card(rng, split, digit)
    canvas = paste(scene, [card], choose_cells(rng, rows, columns, 1))
    return store_picture(rng, canvas), card, scene


def captions(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """A card on a photograph, and both named."""
    rows, columns = _grid(rng, ((2, 2), (2, 3), (3, 2), (3, 3)))
    scene = any_scene(rng, split, columns * CARD, rows * CARD)
    card = draw_card(rng, split, int(rng.integers(10)))
    media = store_picture(rng, paste(scene, [card], choose_cells(rng, rows, columns, 1)))
    turn = (phrases.DESCRIBE if chat else "", phrases.caption(card.digit, scene.name))
    return Item(opening=(media,), turns=(turn,), origin=_origin([card], [scene]))


def digits(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """A question about one picture."""
    media, card, scene = _one_card(rng, split, int(rng.integers(10)))
    turns = [phrases.which_digit(card.digit)]
    if not is_heldout(split) and rng.random() < 0.5:
        turns.append(phrases.which_scene(scene.name))
    return Item(opening=(media,), turns=tuple(turns), origin=_origin([card], [scene]))


def reading(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """A word on a strip of paper, sometimes with a photograph above or below it."""
    string = choose_string(rng, split)
    sign = render(rng, split, string, CARD)
    pixels, scenes = sign.pixels, []
    if rng.random() < 0.4:
        scene = any_scene(rng, split, pixels.shape[1], CARD)
        pixels = np.concatenate([pixels, scene.pixels][:: 1 if rng.random() < 0.5 else -1])
        scenes.append(scene)
    origin = _origin([], scenes) | {"strings": [string], "sizes": [sign.size]}
    return Item(opening=(store_picture(rng, pixels),), turns=(phrases.what_word(string),), origin=origin)


def multi(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """Questions over two pictures, which none of them answers alone."""
    first = int(rng.integers(10))
    second = first if rng.random() < 0.35 else int(rng.integers(10))
    shown = [_one_card(rng, split, digit) for digit in (first, second)]
    asked = [phrases.add_digits(first, second), phrases.same_digit(first, second), phrases.in_order(first, second)]
    order = rng.permutation(3)[: 1 if is_heldout(split) else 2]
    turns = tuple(asked[int(i)] for i in order)
    origin = _origin([card for _, card, _ in shown], [scene for _, _, scene in shown])
    return Item(opening=tuple(media for media, _, _ in shown), turns=turns, origin=origin)


def interleaved(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """Names and pictures take turns; the question joins one name to the picture after it."""
    names = [phrases.NAMES[int(i)] for i in rng.permutation(len(phrases.NAMES))[: 2 if rng.random() < 0.7 else 3]]
    first, *others = (int(i) for i in rng.permutation(10)[: len(names)])
    shown = [_one_card(rng, split, digit) for digit in (first, *others)]
    opening: list[str | Media] = []
    for name, (media, _, _) in zip(names, shown, strict=True):
        opening += [f"{name} has", media]
    asked = [int(i) for i in rng.permutation(len(names))[: 1 if is_heldout(split) else len(names)]]
    turns = tuple(phrases.whose_digit(names[i], shown[i][1].digit) for i in asked)
    origin = _origin([card for _, card, _ in shown], [scene for _, _, scene in shown])
    return Item(opening=tuple(opening), turns=turns, origin=origin)


def grounding(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """Two cards on a photograph; the box of one is asked for.

    Three by three cells: then the frame around the photograph shows in each cell which third it is.
    """
    rows = columns = phrases.GROUNDING_CELLS
    scene = any_scene(rng, split, columns * CARD, rows * CARD)
    shown = [draw_card(rng, split, int(digit)) for digit in rng.permutation(10)[:2]]
    cells = choose_cells(rng, rows, columns, len(shown))
    turns = [
        phrases.where_is(card.digit, phrases.cell_box(cell, rows, columns))
        for card, cell in zip(shown, cells, strict=True)
    ]
    media = store_picture(rng, paste(scene, shown, cells))
    return Item(
        opening=(media,), turns=tuple(turns[:1] if is_heldout(split) else turns), origin=_origin(shown, [scene])
    )


def clips(rng: np.random.Generator, split: Split, *, chat: bool) -> Item:
    """A clip: which digit, and which way it moves."""
    rows, columns = _grid(rng, ((3, 3), (3, 4), (4, 3)))
    scene = any_scene(rng, split, columns * CARD, rows * CARD)
    card = draw_card(rng, split, int(rng.integers(10)))
    direction = tuple(DIRECTIONS)[int(rng.integers(4))]
    start = choose_cells(rng, rows, columns, 1)[0]
    frames = framed(move_card(scene.pixels, card.pixels, start, direction))
    size = uneven_size(rng, columns * CARD, rows * CARD, even=True)
    content = encode_h264(np.stack([resize(frame, size) for frame in frames]))
    media = Media(kind="video", suffix="mp4", content=content)
    turn = phrases.clip_turn(card.digit, direction)
    return Item(opening=(media,), turns=(turn,), origin=_origin([card], [scene]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A task and how its answers are scored: "exact" text, or "iou" of boxes of at least a half."""

    draw: Callable[..., Item]
    metric: str = "exact"


TASKS = {
    "captions": Task(draw=captions),
    "reading": Task(draw=reading),
    "digits": Task(draw=digits),
    "multi": Task(draw=multi),
    "interleaved": Task(draw=interleaved),
    "grounding": Task(draw=grounding, metric="iou"),
    "clips": Task(draw=clips),
}
