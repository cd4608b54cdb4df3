"""What a quickstart leaves behind in numbers: `result.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.answering.score import Score

STATES = ("before", "stage1", "stage2", "after")
"""When the held-out questions were asked; `after` is after stage 3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One training stage's `metrics.jsonl`."""

    steps: list[int]
    losses: list[float]
    tokens: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The stage's entry in result.json; rates are over all steps."""
        return {
            "steps": self.steps[-1],
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
            "tokens_per_second": self.tokens / self.seconds,
        }


def read_curve(run_dir: Path) -> Curve:
    """Steps with a loss, one entry a step (a resumed run may have written one twice). Raises ValueError if none."""
    path = run_dir / "metrics.jsonl"
    rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines()) if row["loss"] is not None}
    if not rows:
        raise ValueError(f"{path} has no step with a loss")
    ordered = [rows[step] for step in sorted(rows)]
    return Curve(
        steps=[row["step"] for row in ordered],
        losses=[row["loss"] for row in ordered],
        tokens=sum(row["step_tokens"] for row in ordered),
        seconds=sum(row["step_seconds"] for row in ordered),
    )


def task_table(
    scores: Mapping[str, Score], grey: Mapping[str, float], constant: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """By task: how many questions, chance (the better of `constant` and `grey`), and the share right in each state."""
    return {
        task: {
            "samples": len(scores["after"].answers[task]),
            "chance": max(constant[task], grey[task]),
            **{state: scores[state].shares[task] for state in STATES},
            "constant": constant[task],
            "grey": grey[task],
        }
        for task in sorted(constant)
    }


def print_table(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """The task table on the terminal, in percent."""
    columns = ("chance", *STATES)
    print(f"{'task':<12}{'samples':>8}" + "".join(f"{column:>9}" for column in columns))
    for task, row in tasks.items():
        shares = "".join(f"{100 * row[column]:>8.1f}%" for column in columns)
        print(f"{task:<12}{row['samples']:>8}{shares}", flush=True)
