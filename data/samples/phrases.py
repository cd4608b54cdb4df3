"""What is asked and answered: one place, so that text stand-ins and real pictures use the same words."""

from __future__ import annotations

Turn = tuple[str, str]  # question, answer

NAMES = ("Ann", "Bob", "Eve", "Max")
DESCRIBE = "Describe."
RIM = 1 / 14  # of a cell
GROUNDING_CELLS = 3  # along each side of a picture
LOCATE_FORMAT = "<|object_ref_start|>{}<|object_ref_end|>"


def caption(digit: int, scene: str) -> str:
    """The caption of a card on a photograph."""
    return f"a {digit} on {scene}"


def which_digit(digit: int) -> Turn:
    """Question over one picture."""
    return "Which digit?", str(digit)


def which_scene(scene: str) -> Turn:
    """Question over one picture."""
    return "Where is it?", scene


def what_word(string: str) -> Turn:
    """Question over one picture."""
    return "What does it say?", string


def add_digits(first: int, second: int) -> Turn:
    """Question over two pictures: neither tells the sum alone."""
    return "Sum?", str(first + second)


def same_digit(first: int, second: int) -> Turn:
    """Question over two pictures: neither tells the answer alone."""
    return "Same digit?", "yes" if first == second else "no"


def in_order(first: int, second: int) -> Turn:
    """Question over two pictures: neither tells the answer alone."""
    return "Which digits?", f"{first} {second}"


def whose_digit(name: str, digit: int) -> Turn:
    """Question over pictures between words."""
    return f"{name} has?", str(digit)


def clip_turn(digit: int, direction: str) -> Turn:
    """Question over a clip."""
    return "Which digit, which way?", f"{digit} {direction}"


def box_text(box: tuple[int, int, int, int]) -> str:
    """Qwen2-VL's grounding format; box: (x1, y1, x2, y2), each in [0, 1000)."""
    x1, y1, x2, y2 = box
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"


def where_is(digit: int, box: tuple[int, int, int, int]) -> Turn:
    """Question over one picture, answered by a box."""
    return f"Find {LOCATE_FORMAT.format(digit)}", box_text(box)


def cell_box(cell: tuple[int, int], rows: int, columns: int) -> tuple[int, int, int, int]:
    """Box of what is written on the card in one (row, column) cell of a grid, in thousandths of the picture.

    The card's blank rim is left out. With it, a constant box over two neighbouring cells would have an IoU of exactly a
    half with both.
    """
    row, column = cell
    x1, x2 = (round((column + edge) * 1000 / columns) for edge in (RIM, 1 - RIM))
    y1, y2 = (round((row + edge) * 1000 / rows) for edge in (RIM, 1 - RIM))
    return x1, y1, x2, y2
