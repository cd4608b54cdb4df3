"""Defects for tests/prove/data_plan.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.prove.planting import Mend, replace_name


def drawn_anew() -> Mend:
    """Samples are drawn at random, as a loader without an order does."""
    from data.plan import plan

    def make(_: Any) -> Any:
        def planted(seed: int, name: str, size: int, places: Any, run_length: int = 1) -> Any:
            return np.random.default_rng([seed, int(places[0])]).integers(0, size, len(places))

        return planted

    return replace_name(plan, "samples_at", make)


def patches_uncounted() -> Mend:
    """Rows are packed by tokens alone."""
    from data.plan import plan

    def make(pack: Any) -> Any:
        return lambda tokens, patches, most_tokens, _: pack(tokens, np.zeros_like(patches), most_tokens, 0)

    return replace_name(plan, "pack", make)


def tokens_as_samples() -> Mend:
    """Weights of tokens are taken for weights of samples."""
    from data.plan import plan

    def make(window_shares: Any) -> Any:
        return lambda config, tokens: window_shares(config, [np.ones(1, dtype=np.int64) for _ in tokens])

    return replace_name(plan, "window_shares", make)


def first_fit() -> Mend:
    """Samples go into rows in their order, each row closed when the next one does not fit."""
    from data.plan import plan

    def make(_: Any) -> Any:
        def planted(tokens: Any, patches: Any, most_tokens: int, most_patches: int) -> Any:
            rows, row, left, room = [], 0, most_tokens, most_patches
            for token, patch in zip(tokens.tolist(), patches.tolist(), strict=True):
                if token > left or patch > room:
                    row, left, room = row + 1, most_tokens, most_patches
                left, room = left - token, room - patch
                rows.append(row)
            return np.array(rows)

        return planted

    return replace_name(plan, "pack", make)


def shrunk_by_half() -> Mend:
    """The loader shrinks pictures less than the plan counts on."""
    from data.plan import lengths

    def make(fitting_cap: Any) -> Any:
        def planted(config: Any, sizes: Any, text: int) -> Any:
            found = fitting_cap(config, sizes, text)
            return None if found is None else (2 * found[0], *found[1:])

        return planted

    return replace_name(lengths, "_fitting_cap", make)


def row_read_again() -> Mend:
    """A loader reads its first row, throws it away and reads it again."""
    from data.loading.loader import Loader

    def make(init: Any) -> Any:
        def planted(
            self: Any, config: Any, plan: Any, readers: Any, rank: int, size: int, cursor: Any, *rest: Any
        ) -> None:
            if config.workers == 0:
                readers._reader.read(plan.step(cursor).rows[0])
            init(self, config, plan, readers, rank, size, cursor, *rest)

        return planted

    return replace_name(Loader, "__init__", make)


def rows_in_turn() -> Mend:
    """Rows are dealt to replicas in turn, whatever they cost."""
    from tests.harness import plan_measures

    def make(_: Any) -> Any:
        return lambda rows, dp_size: [list(range(rank, len(rows), dp_size)) for rank in range(dp_size)]

    return replace_name(plan_measures, "assign_rows", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "plan_drawn_anew": (drawn_anew, ("plan/runs of 1",)),
    "plan_patches_uncounted": (patches_uncounted, ("plan/runs of 16",)),
    "plan_tokens_as_samples": (tokens_as_samples, ("plan/lengths",)),
    "plan_first_fit": (first_fit, ("plan/large",)),
    "plan_rows_in_turn": (rows_in_turn, ("plan/balance",)),
    "plan_row_read_again": (row_read_again, ("plan/resumed",)),
    "plan_shrunk_by_half": (shrunk_by_half, ("plan/lengths",)),
}
