"""Loops that numpy has no words for, as machine code."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled at its first call, which takes a second where no earlier process has left it on disk."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # neither the checkout nor the user's cache folder can be written
        return numba.njit(function)
