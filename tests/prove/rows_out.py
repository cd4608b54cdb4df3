"""Rows of a proof: kept case by case while it runs, written as runs/proof/NAME.json at the end, printed as a table."""

import hashlib
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("train", "model", "data", "parallel", "launch", "tests", "recipes", "pyproject.toml")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured cell."""

    item: int
    """Number in the issue's list of what must hold."""
    case: str
    measured: float | None
    """None: the case did not come to its end."""
    limit: float
    unit: str
    seconds: float
    ok: bool


class Ledger:
    """Finished cases on disk, so that a proof that was cut off goes on; good for the same sources only."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._name = name
        self._folder = folder or ROOT / "runs" / "proof"
        self._progress = self._folder / f"{name}.progress.json"
        self._result = self._folder / f"{name}.json"
        self._key = source_digest()
        self.rows: dict[str, list[Row]] = {}

    def beside(self, ending: str) -> Path:
        """Another file of this proof, next to its result."""
        return self._folder / f"{self._name}_{ending}"

    def load(self) -> None:
        """Take over the cases of an earlier attempt in which every row was ok."""
        if not self._progress.exists():
            return
        saved = json.loads(self._progress.read_text())
        if saved["sources"] != self._key:
            return
        for case, rows in saved["cases"].items():
            if rows and all(row["ok"] for row in rows):
                self.rows[case] = [Row(**row) for row in rows]

    def add(self, case: str, rows: list[Row]) -> None:
        """Keep a case's rows."""
        self.rows[case] = rows
        cases = {name: [asdict(row) for row in found] for name, found in self.rows.items()}
        _write(self._progress, {"sources": self._key, "cases": cases})

    def finish(self) -> bool:
        """Write the result; whether every row is ok."""
        rows = [row for found in self.rows.values() for row in found]
        ok = bool(rows) and all(row.ok for row in rows)
        _write(self._result, {"commit": commit(), "ok": ok, "rows": [asdict(row) for row in rows]})
        return ok


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1))
    part.replace(path)


def print_row(row: Row) -> None:
    """One line of the table."""
    measured = "missing" if row.measured is None else f"{row.measured:.3g}"
    verdict = "ok" if row.ok else "FAILS"
    numbers = f"{measured:>9} {row.limit:>9.3g} {row.unit:<12} {row.seconds:>6.1f} s"
    print(f"{row.item:>4}  {row.case:<84} {numbers}  {verdict}", flush=True)


def print_head() -> None:
    """The table's first line."""
    print(f"item  {'case':<84} {'measured':>9} {'limit':>9} {'unit':<12} {'time':>8}")


def commit() -> str:
    """HEAD, with `-dirty` if the sources differ from it."""
    head = _git("rev-parse", "HEAD").strip()
    return head + "-dirty" if _git("status", "--porcelain", "--", *SOURCES) else head


def source_digest() -> str:
    """blake2b over every source file as it lies here, committed or not."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(_git("ls-files", "-co", "--exclude-standard", "--", *SOURCES).splitlines()):
        if (ROOT / name).is_file():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    environment = dict(os.environ, GIT_OPTIONAL_LOCKS="0")
    result = subprocess.run(
        ["git", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout
