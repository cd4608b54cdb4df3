"""The line that a run shows on its terminal, every `log.every_steps` steps."""

import math
from collections.abc import Mapping
from typing import Any


class Console:
    """Prints where a run is. Rates and waits are over all steps since the line before, so that none goes unseen."""

    def __init__(self, every: int, started: float, from_progress: float, has_pipeline: bool) -> None:
        """`started` is this start's clock; `from_progress` is what earlier starts had done."""
        self._every = every
        self._started = started
        self._from_progress = from_progress
        self._has_pipeline = has_pipeline
        self._since: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any], progress: float, now: float) -> None:
        """Take a step's metrics; print if it is due, or if the step was left out or is the last."""
        self._since.append(row)
        if row["step"] % self._every and row["step"] != 1 and progress < 1.0 and not row["skipped"]:
            return
        print(self._line(row, progress, now), flush=True)
        self._since.clear()

    def _line(self, row: Mapping[str, Any], progress: float, now: float) -> str:
        seconds = max(self._sum("step_seconds"), 1e-9)
        learned = f"skipped, {row['skipped']}"
        if not row["skipped"]:
            learned = f"loss {row['loss']:.4f}  norm {row['grad_norm']:.3f}"
        words = [
            f"{row['stage']}  step {row['step']:>5}  {progress:>4.0%}  {learned}",
            f"{self._sum('step_tokens') / seconds:>7.0f} tokens/s",
        ]
        if "mfu" in row:
            words.append(f"mfu {sum(step['mfu'] * step['step_seconds'] for step in self._since) / seconds:.1%}")
        words.append(f"data wait {self._sum('data_seconds') / seconds:.0%}")
        if self._has_pipeline:
            words.append(f"bubble {self._sum('bubble') / len(self._since):.0%}")
        done = progress - self._from_progress
        left = (now - self._started) / done * (1.0 - progress) if done > 0 else math.inf
        return "  ".join([*words, f"{duration(left)} left"])

    def _sum(self, key: str) -> float:
        return sum(row[key] for row in self._since)


def duration(seconds: float) -> str:
    """As a person says it: 63 s, 12 min, 3 h 20 min, 5 d 4 h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"
