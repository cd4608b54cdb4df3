"""How a defect is planted: one name replaced where the code looks it up, and put back afterwards."""

from collections.abc import Callable
from typing import Any

Mend = Callable[[], None]
"""Puts back what was replaced."""


def replace_name(place: Any, name: str, make: Callable[[Any], Any]) -> Mend:
    """Put `make(original)` in the place of `place.name`."""
    original = place.__dict__[name]
    plain = original.__func__ if isinstance(original, classmethod | staticmethod) else original
    setattr(place, name, make(plain))
    return lambda: setattr(place, name, original)
