"""Best-fit-decreasing packing under two budgets: language-model tokens and vision patches of a row."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(tokens: Sequence[int], patches: Sequence[int], max_tokens: int, max_patches: int) -> list[list[int]]:
    """Rows of sample numbers, each within both budgets; numbers ascend within a row.

    Samples go in order of the budget they fill most, each to the row with the fewest tokens left that still takes it.
    Ties go to the lower number, and only integers are compared, so every host makes the same rows.
    """
    scale = max(1, max_patches)
    order = sorted(range(len(tokens)), key=lambda i: (-max(tokens[i] * scale, patches[i] * max_tokens), i))
    rows: list[list[int]] = []
    patches_left: list[int] = []
    open_rows: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for i in order:
        assert tokens[i] <= max_tokens and patches[i] <= max_patches, (i, tokens[i], patches[i])
        place = bisect_left(open_rows, (tokens[i], -1))
        while place < len(open_rows) and patches_left[open_rows[place][1]] < patches[i]:
            place += 1
        if place < len(open_rows):
            left, row = open_rows.pop(place)
        else:
            left, row = max_tokens, len(rows)
            rows.append([])
            patches_left.append(max_patches)
        rows[row].append(i)
        patches_left[row] -= patches[i]
        insort(open_rows, (left - tokens[i], row))
    return [sorted(row) for row in rows]
