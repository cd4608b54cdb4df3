"""Curves as inline SVG: numbers alone, so that nothing of a run's names is in what is not escaped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COLOURS = 8
"""The page's style has so many, .c0 to .c7; more series take them again."""
_WIDTH, _HEIGHT = 420, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 22  # around the plot
_MOST_POINTS = 260  # of a line
_FAR = 6.0  # times the 98th percentile: values beyond do not stretch the axis, and are marked at its top
_SMOOTHED = 50  # the part of a line that a drawn mean reaches to either side


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What is shown along the steps."""

    starts: Sequence[float] = ()
    saves: Sequence[float] = ()
    skipped: Sequence[float] = ()


def draw(
    steps: Floats, series: Mapping[str, Floats], marks: Marks, *, unit: str = "", band: bool = False, zero: bool = True
) -> Markup:
    """A chart of series over steps, colours in their order.

    Args:
        unit: of the values: "%" takes shares as percent.
        band: draw each value faintly behind the mean around it.
        zero: whether the axis begins at zero, where values are near enough.
    """
    values = [value for column in series.values() for value in column[np.isfinite(column)].tolist()]
    if not values or not len(steps):
        return Markup(
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><text x="{_LEFT}" y="40">no values</text></svg>'
        )
    low, high = _limits(np.array(values), zero)
    plot = _Plot(first=float(steps[0]), last=float(max(steps[-1], steps[0] + 1)), low=low, high=high)
    pieces = [*_grid(plot, unit), *_marked(plot, marks)]
    for place, column in enumerate(series.values()):
        at, means, least, most = buckets(steps, column)
        if band:
            pieces.append(f'<path class="band c{place % COLOURS}" d="{_area(plot, at, least, most)}"/>')
            means = smooth(means)
        pieces.append(f'<path class="line c{place % COLOURS}" d="{_path(plot, at, means)}"/>')
        pieces += [
            f'<path class="far c{place % COLOURS}" d="M{plot.x(step):.1f},{_TOP + 1} l3,5 h-6 z"/>'
            for step, value in zip(at, most, strict=True)
            if value > high
        ]
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(pieces)}</svg>')


def buckets(steps: Floats, values: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """At most _MOST_POINTS of (step, mean, least, most); nan where a stretch has no finite value."""
    count = min(len(steps), _MOST_POINTS)
    edges = np.linspace(0, len(steps), count + 1).round().astype(int)
    rows = []
    for start, stop in pairwise(edges):
        finite = values[start:stop][np.isfinite(values[start:stop])]
        of_it = (finite.mean(), finite.min(), finite.max()) if len(finite) else (math.nan,) * 3
        rows.append((steps[start:stop].mean(), *of_it))
    at, mean, least, most = np.array(rows).T
    return at, mean, least, most


def smooth(values: Floats) -> Floats:
    """Means over what lies around each value, nan left out: unlike means over the past, they do not lag."""
    reach = max(1, len(values) // _SMOOTHED)
    held = np.isfinite(values)
    sums, counts = (np.concatenate(([0.0], np.cumsum(each))) for each in (np.where(held, values, 0.0), held))
    places = np.arange(len(values))
    # As far to the one side as to the other, so that the ends are not drawn towards the middle.
    around = np.minimum(reach, np.minimum(places, len(values) - 1 - places))
    starts, stops = places - around, places + around + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[stops] - sums[starts]) / (counts[stops] - counts[starts])


def latest(values: Floats) -> float:
    """Mean over the last fiftieth of the finite values, nan if there is none: of one step alone it would be chance."""
    finite = values[np.isfinite(values)]
    return float(finite[-max(1, len(finite) // _SMOOTHED) :].mean()) if len(finite) else math.nan


def short(value: float, unit: str = "") -> str:
    """A number in about four characters: 0.31, 12, 5.4k, 31 %."""
    if not math.isfinite(value):
        return "-"
    if unit == "%":
        return f"{100 * value:.0f} %" if abs(value) >= 0.1 else f"{100 * value:.2g} %"
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g}{letter}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plot:
    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / (self.last - self.first) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _limits(values: Floats, zero: bool) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.98))
    if 0 < _FAR * usual < high:
        high = 2 * usual
    if low > 0 and (zero or low < 0.3 * high):
        low = 0.0
    if high <= low:
        low, high = low - abs(low) * 0.1 - 1e-12, high + abs(high) * 0.1 + 1e-12
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    return min(low, math.floor(low / step) * step), math.ceil(high / step - 1e-9) * step


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from low to high, about `most` of them."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(plot: _Plot, unit: str) -> list[str]:
    pieces = []
    for tick in nice_ticks(plot.low, plot.high):
        y = plot.y(tick)
        pieces.append(f'<path class="grid" d="M{_LEFT},{y:.1f} H{_WIDTH - _RIGHT}"/>')
        pieces.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick, unit)}</text>')
    for tick in nice_ticks(plot.first, plot.last, 5):
        if tick == int(tick):
            pieces.append(f'<text x="{plot.x(tick):.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{short(tick)}</text>')
    return pieces


def _marked(plot: _Plot, marks: Marks) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    shown = [
        ("start", [step for step in marks.starts if step > plot.first], _TOP, bottom),
        ("save", marks.saves, bottom, bottom + 4),
        ("skip", marks.skipped, bottom - 7, bottom),
    ]
    return [
        f'<path class="{kind}" d="M{plot.x(step):.1f},{top} V{end}"/>'
        for kind, at, top, end in shown
        for step in sorted({round(step) for step in at if plot.first <= step <= plot.last})[:2000]
    ]


def _path(plot: _Plot, at: Floats, values: Floats) -> str:
    """A line that breaks where there is nothing; a lone value is a dot."""
    pieces, pen = [], "M"
    for step, value in zip(at, values, strict=True):
        if math.isfinite(value):
            pieces.append(f"{pen}{plot.x(step):.1f},{plot.y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(pieces) + ("h0.1" if len(pieces) == 1 else "")


def _area(plot: _Plot, at: Floats, least: Floats, most: Floats) -> str:
    held = [(step, a, b) for step, a, b in zip(at, least, most, strict=True) if math.isfinite(a)]
    upper = [f"{plot.x(step):.1f},{plot.y(value) - 0.4:.1f}" for step, _, value in held]
    lower = [f"{plot.x(step):.1f},{plot.y(value) + 0.4:.1f}" for step, value, _ in reversed(held)]
    return "M" + "L".join(upper + lower) + "Z"
