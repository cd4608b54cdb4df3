"""Best-fit-decreasing packing under two budgets: language-model tokens and vision patches of a row."""

import numpy as np

from data.plan.jit import compiled
from data.types import Int64


def pack(tokens: Int64, patches: Int64, max_tokens: int, max_patches: int) -> Int64:
    """The row of each item; every row is within both budgets.

    Items go in order of the budget they fill most, each to the row with the fewest tokens left that still takes it.
    Ties go to the lower number, and only integers are compared, so every host makes the same rows.

    Args:
        tokens, patches: int64 (N,), each within its budget.
    """
    assert tokens.max(initial=0) <= max_tokens and patches.max(initial=0) <= max_patches
    filled = np.maximum(tokens * max(1, max_patches), patches * max_tokens)
    return _best_fit(np.argsort(-filled, kind="stable"), tokens, patches, max_tokens, max_patches)


@compiled
def _best_fit(order: Int64, tokens: Int64, patches: Int64, max_tokens: int, max_patches: int) -> Int64:
    row_of = np.empty(len(order), dtype=np.int64)
    patches_left = np.empty(len(order), dtype=np.int64)
    # Open rows by (tokens left, row), ascending.
    left = np.empty(len(order) + 1, dtype=np.int64)
    row_at = np.empty(len(order) + 1, dtype=np.int64)
    num_rows = 0
    for item in order:
        low, high = 0, num_rows
        while low < high:
            middle = (low + high) // 2
            if left[middle] < tokens[item]:
                low = middle + 1
            else:
                high = middle
        place = low
        while place < num_rows and patches_left[row_at[place]] < patches[item]:
            place += 1
        if place == num_rows:
            left[place], row_at[place], patches_left[num_rows] = max_tokens, num_rows, max_patches
            num_rows += 1
        row, remaining = row_at[place], left[place] - tokens[item]
        # The row moves down to where it belongs now; those in between move up.
        while place > 0 and (left[place - 1] > remaining or (left[place - 1] == remaining and row_at[place - 1] > row)):
            left[place], row_at[place] = left[place - 1], row_at[place - 1]
            place -= 1
        left[place], row_at[place] = remaining, row
        patches_left[row] -= patches[item]
        row_of[item] = row
    return row_of
