"""`python -m launch.reference [--check]`: docs/reference.md, every key that a recipe can have, from the typed configs.

What a key means is said once, at its field (PEP 257's attribute docstrings); `--check` only says whether the page is up
to date.
"""

import argparse
import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from launch.checkout import ROOT
from train.config import RunConfig

PAGE = ROOT / "docs" / "reference.md"
_HEAD = """# Every key of a recipe

Written by `python -m launch.reference` from the typed configs; a test holds it to them. A key is overridden as
`key=value` after a recipe's name; what has no default has to be in the recipe. `recipes/` has values that fit together.
"""


def page() -> str:
    """The whole page, Markdown."""
    return "\n".join([_HEAD, *_sections(RunConfig, "")])


def _sections(record: type, path: str) -> Iterator[str]:
    """The table of one record's own keys, then the records in it."""
    kinds, told = typing.get_type_hints(record), _told(record)
    fields = dataclasses.fields(record)
    yield f"## {path or 'The run'}\n"
    yield f"{_prose(inspect.getdoc(record) or '')}\n"
    plain = [field for field in fields if _record_of(kinds[field.name]) is None]
    if plain:
        yield "| key | type | default | |\n|---|---|---|---|"
        for field in plain:
            key, kind = f"{path}.{field.name}".lstrip("."), _name(kinds[field.name])
            yield f"| `{key}` | {_cell(kind)} | {_cell(_default(field))} | {_cell(_prose(told.get(field.name, '')))} |"
        yield ""
    for field in fields:
        inner = _record_of(kinds[field.name])
        if inner is not None:
            several = typing.get_origin(kinds[field.name]) is tuple
            yield from _sections(inner, f"{path}.{field.name}".lstrip(".") + ("[]" if several else ""))


def _record_of(kind: Any) -> type | None:
    """The record that a key holds, holds several of, or may hold."""
    if dataclasses.is_dataclass(kind):
        return typing.cast(type, kind)
    inner = (option for option in typing.get_args(kind) if dataclasses.is_dataclass(option))
    return typing.cast(type | None, next(inner, None))


def _told(record: type) -> dict[str, str]:
    """What stands under each field of a record."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            found[field.target.id] = inspect.cleandoc(str(ast.literal_eval(after.value)))
    return found


def _name(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return "null"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(option) for option in inner)
    if origin is typing.Literal:
        return " or ".join(f"`{option}`" for option in inner)
    if origin is tuple:
        several = inner[-1] is Ellipsis
        return f"list of {_name(inner[0])}" if several else f"{len(inner)} x {_name(inner[0])}"
    if origin is dict:
        return f"group of {_name(inner[1])}"
    return getattr(kind, "__name__", str(kind))


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)


def _prose(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Exit code: with --check 1 if the page on disk is another."""
    parser = argparse.ArgumentParser(prog="python -m launch.reference", description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
