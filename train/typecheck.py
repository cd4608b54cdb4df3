"""Where strict dacite is too lax or too terse: every fault of a recipe at once, each with its path.

Known gaps this closes: `True` passes as an int, an int stays an int where a float is declared, an unknown key is
named without its path, and the first fault hides the others. Building the records is still dacite's work.
"""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any


def check_types(plain: Any, record: type) -> tuple[dict[str, Any], list[str]]:
    """`plain` with ints made floats where declared, and one line per unknown key, missing key and wrong type."""
    faults: list[str] = []
    return _record(plain, record, "", faults), faults


def _record(value: Any, record: type, path: str, faults: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        faults.append(f"{path or 'the recipe'} must be a group of keys, not {_describe(value)}")
        return {}
    declared = {field.name: field for field in dataclasses.fields(record)}
    kinds = typing.get_type_hints(record)
    for key in value:
        if key not in declared:
            faults.append(f"{_join(path, key)} is not a key of a recipe; {_near(str(key), path, list(declared))}")
    for name, field in declared.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in value and required:
            faults.append(f"{_join(path, name)} is missing; it needs {_name(kinds[name])}")
    return {key: _value(item, kinds[key], _join(path, key), faults) for key, item in value.items() if key in declared}


def _value(value: Any, kind: Any, path: str, faults: list[str]) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        is_list = isinstance(value, list | tuple)
        options = [option for option in inner if option is not type(None)]
        fitting = [option for option in options if (typing.get_origin(option) is tuple) == is_list]
        told = len(faults)
        taken = _value(value, fitting[0] if fitting else options[0], path, faults)
        if len(options) > 1 and len(faults) == told + 1 and faults[told].startswith(f"{path} "):
            faults[told] = f"{path} needs {_name(kind)}, got {_describe(value)}"
        return taken
    if dataclasses.is_dataclass(kind):
        return _record(value, typing.cast(type, kind), path, faults)
    if origin is tuple and isinstance(value, list | tuple):
        several = inner[-1] is Ellipsis
        if several or len(value) == len(inner):
            kinds = [inner[0]] * len(value) if several else list(inner)
            return tuple(
                _value(*pair, f"{path}[{at}]", faults) for at, pair in enumerate(zip(value, kinds, strict=True))
            )
    elif origin is dict and isinstance(value, dict):
        return {key: _value(item, inner[1], _join(path, key), faults) for key, item in value.items()}
    elif origin is typing.Literal and value in inner and isinstance(value, str):
        return value
    elif kind is float and type(value) is int:
        return float(value)
    elif kind is float and type(value) is float and not math.isfinite(value):
        # Not a number passes every comparison that asks what is wrong, so no later check would see it.
        faults.append(f"{path} needs a finite float, got {value}")
        return value
    elif isinstance(kind, type) and type(value) is kind:  # `type is`: a bool is an int for isinstance
        return value
    faults.append(f"{path} needs {_name(kind)}, got {_describe(value)}")
    return value


def _near(key: str, path: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(_join(path, name) for name in close) + "?"
    return f"{path or 'the top level'} has {', '.join(sorted(known))}"


def _name(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if option is type(None) else _name(option) for option in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(inner)
    if origin is tuple:
        return (
            f"a list of {_name(inner[0])}" if inner[-1] is Ellipsis else f"a list of {len(inner)} x {_name(inner[0])}"
        )
    if origin is dict:
        return f"a group of {_name(inner[1])}"
    return "a group of keys" if dataclasses.is_dataclass(kind) else kind.__name__


def _describe(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
