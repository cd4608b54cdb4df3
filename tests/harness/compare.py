"""Two layouts' records side by side, tensor by tensor."""

import math
from dataclasses import dataclass

import numpy as np

from tests.harness.layouts import Piece, Record


def assemble(per_rank: list[list[Piece]], reference: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Whole tensors from every rank's boxes; a place that no rank holds stays nan.

    Where ranks hold the same place (the replicated merger, norms), the copy farther from `reference` is kept, so that
    one wrong replica cannot hide behind another.
    """
    whole: dict[str, np.ndarray] = {}
    held: set[tuple[str, tuple[int, ...]]] = set()
    for pieces in per_rank:
        for piece in pieces:
            target = whole.setdefault(piece.name, np.full(piece.shape, np.nan, dtype=np.float32))
            places = tuple(
                slice(start, start + size) for start, size in zip(piece.offset, piece.values.shape, strict=True)
            )
            if reference is not None and piece.name in reference:
                right = reference[piece.name][places]
                kept, found = np.linalg.norm(target[places] - right), np.linalg.norm(piece.values - right)
                # A copy that is not a number is the farthest of all.
                if (piece.name, piece.offset) in held and not (found > kept or np.isnan(found)):
                    continue
            held.add((piece.name, piece.offset))
            target[places] = piece.values
    return whole


@dataclass(kw_only=True)
class Difference:
    """Largest relative differences between two runs, each a share of the reference."""

    loss: float
    norm: float
    gradient: float
    weight: float
    worst: str

    @property
    def largest(self) -> float:
        return max(self.loss, self.norm, self.gradient, self.weight)


def compare(reference: list[Record], other: list[Record]) -> Difference:
    """Compare two layouts: loss, norm and every tensor's gradient at each step, and every weight tensor at the end.

    Loss and norm are those of the rank farthest from the reference.
    """
    worst = (0.0, "nothing")
    loss = max(_largest_relative(reference[0].losses, record.losses) for record in other)
    norm = max(_largest_relative(reference[0].norms, record.norms) for record in other)
    gradient = 0.0
    assert all(len(record.gradients) == len(reference[0].gradients) for record in other), "updates differ in number"
    for step in range(len(reference[0].gradients)):
        expected = assemble([record.gradients[step] for record in reference])
        measured = assemble([record.gradients[step] for record in other], expected)
        total = float(np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in expected.values())))
        for name, value in tensor_errors(expected, measured, floor=1e-6 * total).items():
            gradient = max(gradient, value)
            worst = max(worst, (value, f"gradient of {name} at step {step + 1}"))
    weight = 0.0
    expected = assemble([record.weights for record in reference])
    errors = tensor_errors(expected, assemble([record.weights for record in other], expected), floor=0.0)
    for name, value in errors.items():
        weight = max(weight, value)
        worst = max(worst, (value, f"weight {name}"))
    return Difference(loss=loss, norm=norm, gradient=gradient, weight=weight, worst=worst[1])


def _largest_relative(expected: list[float], measured: list[float]) -> float:
    return max(_relative(a, b) for a, b in zip(expected, measured, strict=True))


def _relative(expected: float, measured: float) -> float:
    """A skipped step has no loss on either side. What is no number on one side alone is infinitely far: `max` would
    pass over a nan."""
    if expected == measured or (math.isnan(expected) and math.isnan(measured)):
        return 0.0
    return _share(abs(measured - expected), abs(expected))


def _share(distance: float, scale: float) -> float:
    """Of nothing there is no share: only nothing is equal to it."""
    if distance == 0.0:
        return 0.0
    return distance / scale if scale > 0.0 and not math.isnan(distance) else math.inf


def tensor_errors(expected: dict[str, np.ndarray], measured: dict[str, np.ndarray], floor: float) -> dict[str, float]:
    assert expected.keys() == measured.keys(), f"tensors differ: {sorted(expected.keys() ^ measured.keys())}"
    errors = {}
    for name, reference in expected.items():
        scale = max(float(np.linalg.norm(reference)), floor)
        errors[name] = _share(float(np.linalg.norm(measured[name] - reference)), scale)
    return errors
