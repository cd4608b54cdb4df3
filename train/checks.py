"""One row of the table that a run begins with: what was looked at, and what is to be done where it is not in order."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Something that was looked at before a run."""

    name: str
    found: str
    """With the numbers; of what is not in order, with the cure."""
    ok: bool = True
    doubtful: bool = False
    """The run can start, and somebody should read this first."""

    @property
    def line(self) -> str:
        """For people."""
        word = "FAIL" if not self.ok else "note" if self.doubtful else "ok"
        return f"  {self.name:<11} {word:<5} {self.found}"


class PreflightError(ValueError):
    """The run cannot start: one line for each thing that is not in order, each with its cure."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self.faults = [f"{check.name}: {check.found}" for check in checks if not check.ok]
        super().__init__("the run cannot start:" + "".join(f"\n  - {fault}" for fault in self.faults))
