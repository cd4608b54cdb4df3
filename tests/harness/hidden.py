"""Characters that have a meaning in a rendered conversation, hidden in a sample's own text and brought back."""

from typing import Any

FLOWER = "\u273f"
_HIDDEN = {"<": "\U000f0001", FLOWER: "\U000f0002"}
_REVEALED = str.maketrans({hidden: plain for plain, hidden in _HIDDEN.items()})


def hide(value: Any) -> Any:
    """The same JSON with them hidden in every text."""
    if isinstance(value, str):
        return value.translate(str.maketrans(_HIDDEN))
    if isinstance(value, dict):
        return {hide(key): hide(one) for key, one in value.items()}
    return [hide(one) for one in value] if isinstance(value, list) else value


def reveal(text: str) -> str:
    """`text` with them."""
    return text.translate(_REVEALED)
