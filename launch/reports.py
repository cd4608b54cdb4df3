"""What a command found, for people and for programs."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Printed as lines, or with --json as data."""

    lines: list[str]
    data: Any
    """What JSON can hold."""
    good: bool = True
    """Whether what was looked at is in order."""

    def tell(self, as_json: bool) -> int:
        """Print it; the exit code."""
        for line in [json.dumps(self.data)] if as_json else self.lines:
            print(line)
        return 0 if self.good else 1


def table(rows: list[list[str]]) -> list[str]:
    """Rows as lines with aligned columns; the last is as long as it is."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
