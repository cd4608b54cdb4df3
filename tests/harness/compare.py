"""Two layouts' records side by side, tensor by tensor."""

from dataclasses import dataclass

import numpy as np

from tests.harness.layouts import Piece, Record


def assemble(per_rank: list[list[Piece]], reference: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Whole tensors from every rank's boxes; a place that no rank holds stays nan.

    Where ranks hold the same place (the replicated merger, norms), the copy farther from `reference` is kept, so that
    one wrong replica cannot hide behind another.
    """
    whole: dict[str, np.ndarray] = {}
    for pieces in per_rank:
        for piece in pieces:
            target = whole.setdefault(piece.name, np.full(piece.shape, np.nan, dtype=np.float32))
            places = tuple(
                slice(start, start + size) for start, size in zip(piece.offset, piece.values.shape, strict=True)
            )
            if reference is not None and piece.name in reference:
                right = reference[piece.name][places]
                if np.linalg.norm(target[places] - right) > np.linalg.norm(piece.values - right):
                    continue
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
    """Compare two layouts: loss, norm and every tensor's gradient at each step, and every weight tensor at the end."""
    worst = (0.0, "nothing")
    loss = _largest_relative(reference[0].losses, other[0].losses)
    norm = _largest_relative(reference[0].norms, other[0].norms)
    gradient = 0.0
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
    return max(abs(a - b) / abs(a) for a, b in zip(expected, measured, strict=True))


def tensor_errors(expected: dict[str, np.ndarray], measured: dict[str, np.ndarray], floor: float) -> dict[str, float]:
    assert expected.keys() == measured.keys(), f"tensors differ: {sorted(expected.keys() ^ measured.keys())}"
    errors = {}
    for name, reference in expected.items():
        scale = max(float(np.linalg.norm(reference)), floor)
        error = float(np.linalg.norm(measured[name] - reference)) / scale
        errors[name] = float("inf") if np.isnan(error) else error
    return errors
