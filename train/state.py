"""What a run has done so far, beside weights and optimizer."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Counters of one training stage; equal on every rank and saved with every checkpoint."""

    step: int = 0
    """Steps finished, skipped ones included."""
    tokens: int = 0
    """Text and visual tokens seen."""
    samples: int = 0
    bad: int = 0
    """Samples that could not be decoded, of `samples`."""
    skipped: int = 0
    """Steps with nothing to learn or no finite gradient: the optimizer was left untouched, the data cursor moved on."""
    non_finite_in_row: int = 0
    """Of these, the latest without a finite step since."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
