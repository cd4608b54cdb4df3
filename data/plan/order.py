"""Which samples a window holds and in which order: shares of sources, their permutations, runs that stay together."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import BudgetError
from data.plan.jit import compiled
from data.plan.permutation import order_key, permute, place_of
from data.types import Int64

LEAST_RUNS = 4  # that a source has to be cut into


def window_shares(config: DataConfig, tokens: Sequence[Int64]) -> list[int]:
    """Samples of each source in a window, by largest remainder. Raises BudgetError if a source would get none.

    Args:
        tokens: length of every sample of each source; looked at where weights are shares of the tokens.
    """
    weights = [Fraction(source.weight) for source in config.sources]
    if config.weights_are == "tokens":
        means = [Fraction(int(lengths.sum()), len(lengths)) for lengths in tokens]
        weights = [weight / mean for weight, mean in zip(weights, means, strict=True)]
    exact = [weight / sum(weights) * config.window for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: config.window - sum(shares)]:
        shares[i] += 1
    empty = [(s.name, s.weight) for s, share in zip(config.sources, shares, strict=True) if share == 0]
    if empty:
        raise BudgetError(
            f"a window of {config.window} samples has none of {empty} (name, weight; by {config.weights_are}); raise "
            "data.window or their weights, or leave them out"
        )
    return shares


def check_runs(config: DataConfig, sizes: Sequence[int]) -> None:
    """Raises BudgetError if runs are so long that a source has hardly an order left to shuffle."""
    few = [
        (source.name, size, size // config.run_length)
        for source, size in zip(config.sources, sizes, strict=True)
        if config.run_length > 1 and size // config.run_length < LEAST_RUNS
    ]
    if few:
        raise BudgetError(
            f"data.run_length {config.run_length} leaves fewer than {LEAST_RUNS} runs to shuffle in {few} (name, "
            "samples, runs); lower it"
        )


def interleave(shares: Sequence[int]) -> Int64:
    """The order in which the samples of all sources, listed source by source, come in a window: evenly by stride."""
    places = np.concatenate([(2 * np.arange(count) + 1) / (2 * count) for count in shares])
    # Equal fractions round to the same number on every platform; of those the lower source comes first.
    return np.argsort(places, kind="stable")


def samples_at(seed: int, name: str, size: int, places: Int64, run_length: int = 1) -> Int64:
    """Samples at places of a source's endless sequence: one permutation after another. Places ascend.

    Runs of `run_length` samples stay together; the samples that are left over from the last whole run end each epoch.
    """
    epochs = places // size
    within = places % size
    whole = size // run_length
    order = within.copy()
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if len(places) else ():
        chosen = np.flatnonzero((epochs == epoch) & (within < whole * run_length))
        runs, offsets = np.divmod(within[chosen], run_length)
        order[chosen] = permute(runs, whole, order_key(seed, name, epoch)) * run_length + offsets if whole else 0
    return order


def next_window(
    seed: int,
    name: str,
    size: int,
    share: int,
    index: int,
    window: int,
    run_length: int = 1,
    *,
    first: int = 0,
    held: int = 0,
) -> int:
    """The first window after `window` that has sample `index` of a source again.

    Args:
        share: its samples of a window.
        first, held: windows take `held` other places before they go on from place `first`.
    """
    whole = size // run_length
    epoch = (first + max(0, window * share - held)) // size
    while True:
        within = index
        if index < whole * run_length:
            run = place_of(np.array([index // run_length]), whole, order_key(seed, name, epoch))
            within = int(run[0]) * run_length + index % run_length
        place = epoch * size + within
        found = (place - first + held) // share
        if place >= first and found > window:
            return found
        epoch += 1


@compiled
def cut_runs(
    new: NDArray[np.bool_], tokens: Int64, patches: Int64, max_tokens: int, max_patches: int
) -> NDArray[np.bool_]:
    """Where runs begin, (N,), with another beginning wherever one would pass a limit."""
    begins = new.copy()
    sum_tokens, sum_patches = 0, 0
    for i in range(len(new)):
        sum_tokens += tokens[i]
        sum_patches += patches[i]
        if new[i] or sum_tokens > max_tokens or sum_patches > max_patches:
            begins[i] = True
            sum_tokens, sum_patches = tokens[i], patches[i]
    return begins
