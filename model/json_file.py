"""JSON files beside weights, read key by key: what is absent or of another type is told with file, key and value."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object; ValueError naming the file when it is absent or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON object as these folders have them: indented, UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Section:
    """One object of a JSON file. Every method raises ValueError with the file, the key and what was found.

    null counts as absent, as transformers has it.
    """

    def __init__(self, values: Mapping[str, Any], path: Path, inside: str = "") -> None:
        self.path = path
        self._inside = inside
        self._values = {key: value for key, value in values.items() if value is not None}

    @classmethod
    def of_file(cls, path: Path) -> "Section":
        return cls(read_json(path), path)

    def keys(self) -> list[str]:
        return list(self._values)

    def get(self, key: str) -> Any:
        """The value as it stands; None if there is none."""
        return self._values.get(key)

    def named(self, key: str) -> str:
        """File and key, as errors begin."""
        return f"{self.path}: {self._inside}{key}"

    def section(self, key: str) -> "Section | None":
        """The object under `key`, if there is one."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, "a JSON object")
        return Section(value, self.path, f"{self._inside}{key}.")

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number. `default` is for keys that may be absent."""
        value = self._needed(key, default)
        if type(value) is not int or value < least:
            raise self._wrong(key, f"a whole number of at least {least}")
        return value

    def counts(self, key: str, least: int = 0) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._needed(key, None)
        if not isinstance(value, list) or any(type(one) is not int or one < least for one in value):
            raise self._wrong(key, f"a list of whole numbers of at least {least}")
        return tuple(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._needed(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self._wrong(key, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false; absent is false."""
        value = self._values.get(key, False)
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def _needed(self, key: str, default: Any) -> Any:
        value = self._values.get(key, default)
        if value is None:
            raise ValueError(f"{self.named(key)} is missing; it must be written out, a default could silently be wrong")
        return value

    def _wrong(self, key: str, wanted: str) -> ValueError:
        return ValueError(f"{self.named(key)} is {shortened(self._values.get(key))}; {wanted} is needed")
