"""docs/troubleshooting.md quotes what the code says."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("train", "model", "data", "parallel", "launch")
FOREIGN = ("CUDA out of memory",)
"""Texts of libraries."""
_QUOTED = re.compile(r"`((?:[^`\\]|\\`)+)`")


def _quotes() -> Iterator[str]:
    """What stands in backquotes in the first column of tables headed by `it says`."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    for table in re.findall(r"^\| it says \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE):
        for line in table.splitlines():
            said = re.split(r"(?<!\\) \| ", line)[0]
            quotes = [quote for quote in _QUOTED.findall(said) if not quote.startswith(("triptych", "nvidia"))]
            assert quotes, line
            yield from (quote.replace("\\`", "`") for quote in quotes)


@cache
def _said() -> str:
    """Every text of the code, a line each, with ... for what is filled in."""
    lines = [path.read_text() for path in (ROOT / "launch").glob("*.sh")]
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            lines += [text for node in ast.walk(ast.parse(path.read_text())) if (text := _text(node))]
    return "\n".join(lines)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@pytest.mark.parametrize("quote", [quote for quote in _quotes() if quote not in FOREIGN])
def test_a_quoted_text_is_one_of_the_code(quote: str) -> None:
    pieces = [re.escape(piece.strip()) for piece in quote.split("...") if piece.strip()]
    assert re.search(".{0,400}?".join(pieces), _said()), f"nothing says {quote!r}"


def test_enough_is_quoted() -> None:
    assert len(list(_quotes())) >= 40
