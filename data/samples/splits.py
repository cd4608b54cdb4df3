"""Which half of the material a sample may use: training and held-out samples never share a scan, region or string."""

from __future__ import annotations

from typing import Literal

import numpy as np

Split = Literal["train", "heldout"]


def is_heldout(split: Split) -> bool:
    """True for "heldout", False for "train"; ValueError for anything else."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'heldout'")
    return split == "heldout"


def rng_for(seed: int, source: str, split: Split, index: int) -> np.random.Generator:
    """A generator of its own for each sample, so that resizing one source leaves every other sample alone."""
    name = int.from_bytes(f"{split}/{source}".encode(), "big") % (1 << 61)
    return np.random.default_rng([seed, name, index])
