"""When an answer is right, and what could be had without looking."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_BOX = re.compile(r"\((\d+),(\d+)\),\((\d+),(\d+)\)")
_MIN_IOU = 0.5
_MAX_EDGES = 24  # a side of the search for the best constant box costs this squared

Box = tuple[int, int, int, int]


def is_correct(metric: str, expected: str, given: str) -> bool:
    """`exact`: the same text but for space around it. `iou`: the last box of each overlaps by a half or more."""
    if metric == "exact":
        return given.strip() == expected.strip()
    if metric == "iou":
        wanted, found = parse_box(expected), parse_box(given)
        if wanted is None:
            raise ValueError(f"the expected answer {expected!r} has no box (x1,y1),(x2,y2)")
        return found is not None and iou(wanted, found) >= _MIN_IOU
    raise ValueError(f"unknown metric {metric!r}; samples are judged by exact or iou")


def parse_box(text: str) -> Box | None:
    """The last (x1,y1),(x2,y2) of `text`, None if there is none or it is empty."""
    found = _BOX.findall(text)
    if not found:
        return None
    x1, y1, x2, y2 = (int(number) for number in found[-1])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def iou(a: Box, b: Box) -> float:
    """Shared area over joined area, 0 to 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    joined = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / joined


def constant_share(metric: str, expected: Sequence[str]) -> float:
    """Share of right answers of the best answer that is always the same, chosen with all of them known."""
    if metric == "exact":
        return Counter(text.strip() for text in expected).most_common(1)[0][1] / len(expected)
    boxes = np.array([parse_box(text) for text in expected], dtype=np.float64)
    return _best_box(boxes)


def _best_box(boxes: np.ndarray) -> float:
    """Share of `boxes` (N, 4) that one box meets, tried with every pair of their edges along both sides."""
    spans = []
    for side in (0, 1):
        edges = np.unique(boxes[:, [side, side + 2]])
        if len(edges) > _MAX_EDGES:
            edges = np.quantile(edges, np.linspace(0, 1, _MAX_EDGES))
        low, high = np.meshgrid(edges, edges, indexing="ij")
        low, high = low[low < high], high[low < high]
        shared = np.minimum(high[:, None], boxes[:, side + 2]) - np.maximum(low[:, None], boxes[:, side])
        spans.append((np.maximum(shared, 0.0), high - low))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    best = 0.0
    for shared_x, width in zip(*spans[0], strict=True):
        shared = shared_x * spans[1][0]  # (candidates along y, N)
        joined = width * spans[1][1][:, None] + areas - shared
        best = max(best, float((shared / joined >= _MIN_IOU).mean(axis=1).max()))
    return best
