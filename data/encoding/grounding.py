"""Boxes and references: from pixels, 0-1 or 0-1000 to the text that Qwen2-VL reads and writes, and back.

`<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>`, x1 and y1 the upper left corner,
in thousandths of the picture's width and height, 0 to 999 (Qwen2-VL paper, arXiv 2409.12191).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import FormatError

LARGEST = 999  # coordinates lie in [0, 1000)
REF_START, REF_END = "<|object_ref_start|>", "<|object_ref_end|>"
BOX_START, BOX_END = "<|box_start|>", "<|box_end|>"
_CORNERS = r"\((\d{1,3}),(\d{1,3})\),\((\d{1,3}),(\d{1,3})\)"
_FOUND = re.compile(
    f"{re.escape(REF_START)}(.*?){re.escape(REF_END)}|{re.escape(BOX_START)}{_CORNERS}{re.escape(BOX_END)}", re.DOTALL
)

Box = tuple[int, int, int, int]
Scale = int | Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grounded:
    """A box in thousandths, with the reference written right before it (or before the box right before it)."""

    box: Box
    reference: str | None


def box_text(box: Sequence[float], scale: Scale) -> str:
    """`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`; arguments and errors as for `thousandths`."""
    x1, y1, x2, y2 = thousandths(box, scale)
    return f"{BOX_START}({x1},{y1}),({x2},{y2}){BOX_END}"


def thousandths(box: Sequence[float], scale: Scale) -> Box:
    """(x1, y1, x2, y2) in thousandths: to the nearest one, halves up, at most 999.

    Args:
        box: left, top, right, bottom.
        scale: what the far edges of the picture are in the box's units: 1, 1000, or [width, height] in pixels.

    Raises FormatError if the box is empty, its corners are the wrong way round, or it leaves the picture.
    """
    width, height = _sides(scale)
    if not (isinstance(box, Sequence) and len(box) == 4 and all(_is_number(value) for value in box)):
        raise FormatError(f"a box is four numbers [left, top, right, bottom], got {str(box)[:80]}")
    x1, y1, x2, y2 = box
    # In whole thousandths a thin box has equal sides; in other units it is empty, and most often means "no box".
    empty = (x1 == x2 or y1 == y2) and scale != 1000
    if empty or not (0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height):
        raise FormatError(
            f"box {list(box)} must have 0 <= left < right <= {width} and 0 <= top < bottom <= {height}; "
            "is its `scale` the one it was measured in, and is it not [x, y, width, height]?"
        )
    return _nearest(x1, width), _nearest(y1, height), _nearest(x2, width), _nearest(y2, height)


def unscaled(box: Box, scale: Scale) -> tuple[float, float, float, float]:
    """The box in thousandths as it is in `scale`: what `thousandths` turns into the same box again."""
    width, height = _sides(scale)
    x1, y1, x2, y2 = box
    return x1 * width / 1000, y1 * height / 1000, x2 * width / 1000, y2 * height / 1000


def find_boxes(text: str) -> list[Grounded]:
    """Every whole box of `text` in order. What a model wrote half or the wrong way round is not found."""
    found = []
    reference, reached = None, -1
    for match in _FOUND.finditer(text):
        if match[1] is not None:
            reference, reached = match[1], match.end()
            continue
        x1, y1, x2, y2 = (int(number) for number in match.groups()[1:])
        if match.start() != reached:
            reference = None
        reached = match.end()
        if x1 <= x2 and y1 <= y2:
            found.append(Grounded(box=(x1, y1, x2, y2), reference=reference))
    return found


def part_text(part: Mapping[str, Any]) -> str:
    """The text of a part of type text, ref or box. Raises FormatError."""
    if part["type"] == "box":
        return box_text(part.get("box", ()), part.get("scale", 0))
    text = part.get("text")
    if not isinstance(text, str):
        raise FormatError(f"a part of type {part['type']} needs `text`, got {str(part)[:80]}")
    if part["type"] == "text":
        return text
    if REF_START in text or REF_END in text:
        raise FormatError(f"the reference {text[:80]!r} holds the token that ends or starts one")
    return f"{REF_START}{text}{REF_END}"


def _sides(scale: Any) -> tuple[int, int]:
    sides = (scale, scale) if type(scale) is int and scale in (1, 1000) else scale
    whole = isinstance(sides, Sequence) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if not whole:
        raise FormatError(
            f"the scale of a box is 1, 1000, or [width, height] of its picture in pixels, got {str(scale)[:80]}"
        )
    return sides[0], sides[1]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _nearest(value: float, side: int) -> int:
    return min(int(value * 1000 / side + 0.5), LARGEST)
