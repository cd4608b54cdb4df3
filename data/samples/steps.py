"""An agent's trajectory: it looks at a screen, calls a function, gets the next screen as its result, and goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.samples.digits import CARD, draw_card
from data.samples.items import Media
from data.samples.pictures import choose_cells, paste, resize, store_picture
from data.samples.scenes import any_scene

GRID = 3  # cells along each side of the screen
ZOOM = 2  # an opened card fills this many cells along each side
POINT = {"type": "array", "items": {"type": "integer"}, "description": "[x, y] in thousandths of the screen."}
TAP = {
    "type": "function",
    "function": {
        "name": "tap",
        "description": "Tap a point of the screen.",
        "parameters": {"type": "object", "properties": {"point": POINT}, "required": ["point"]},
    },
}
BACK = {
    "type": "function",
    "function": {
        "name": "back",
        "description": "Close what is open.",
        "parameters": {"type": "object", "properties": {}},
    },
}


def agent(rng: np.random.Generator) -> tuple[dict[str, Any], list[Media]]:
    """Two cards are opened one after the other, and their digits added."""
    cards = [draw_card(rng, "train", int(digit)) for digit in rng.permutation(10)[:2]]
    cells = choose_cells(rng, GRID, GRID, len(cards))
    desk = paste(any_scene(rng, "train", GRID * CARD, GRID * CARD), cards, cells)
    media = [store_picture(rng, desk)]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "media": 0}, {"type": "text", "text": "Add the two cards."}]}
    ]
    for number, (card, (row, column)) in enumerate(zip(cards, cells, strict=True)):
        point = [round((place + 0.5) * 1000 / GRID) for place in (column, row)]
        said = "I open the first card." if number == 0 else f"It is a {cards[0].digit}. Now the other one."
        messages += [_call(said, "tap", {"point": point}), _screen(len(media))]
        media.append(store_picture(rng, resize(card.pixels, (ZOOM * CARD, ZOOM * CARD))))
        if number == 0:
            messages += [_call("", "back", {}), _screen(0, "closed")]
    total = cards[0].digit + cards[1].digit
    messages.append({"role": "assistant", "content": f"{cards[0].digit} + {cards[1].digit} = {total}"})
    return {"tools": [TAP, BACK], "messages": messages}, media


def _call(said: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    called = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": said, "tool_calls": [called]}


def _screen(member: int, told: str = "opened") -> dict[str, Any]:
    return {"role": "tool", "content": [{"type": "text", "text": told}, {"type": "image", "media": member}]}
