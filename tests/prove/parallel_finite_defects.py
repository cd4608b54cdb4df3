"""Defects for tests/prove/parallel_finite.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

from tests.prove.planting import Mend, replace_name


def norm_alone() -> Mend:
    """Only DeepSpeed's norm looks at gradients."""
    import parallel.zero

    return replace_name(parallel.zero, "squared_norms", lambda _: lambda pieces, parts: [0.0] * (1 + len(parts)))


def each_rank_alone() -> Mend:
    """A rank believes its own gradients and asks nobody."""
    import parallel.zero

    return replace_name(parallel.zero, "sum_over", lambda _: lambda group, values: [float(value) for value in values])


def gradients_kept() -> Mend:
    """What a left out step had accumulated stays."""
    from parallel.zero import ZeroOptimizer

    return replace_name(ZeroOptimizer, "drop_gradients", lambda _: lambda self: None)


def never_stops() -> Mend:
    """Any number of steps may be left out."""
    import train.step

    def make(count: Any) -> Any:
        return lambda state, fault, limit: count(state, fault, limit + 100)

    return replace_name(train.step, "_count_non_finite", make)


def counted_for_ever() -> Mend:
    """A finite step does not start the count again."""
    import train.step

    def make(count: Any) -> Any:
        return lambda state, fault, limit: None if fault is None else count(state, fault, limit)

    return replace_name(train.step, "_count_non_finite", make)


def record_late() -> Mend:
    """A left out step is recorded under the next one's number."""
    from train.metrics import Metrics

    def make(record: Any) -> Any:
        return lambda self, step, reason, plan: record(self, step + 1, reason, plan)

    return replace_name(Metrics, "_record_skipped", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "norm_alone": (norm_alone, ("finite/gradient/TP2/fp32", "finite/gradient/TP2/bf16")),
    "each_rank_alone": (each_rank_alone, ("finite/gradient/TP2/fp32",)),
    "gradients_kept": (gradients_kept, ("finite/loss/DP2/fp32",)),
    "never_stops": (never_stops, ("finite/stop/DP2",)),
    "counted_for_ever": (counted_for_ever, ("finite/stop/DP2",)),
    "record_late": (record_late, ("finite/recorded",)),
}
