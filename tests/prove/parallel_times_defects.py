"""Defects for tests/prove/parallel_times.py. Each breaks this process and returns how to mend it.

What they cost is far more than what a busy host does to a median of pairs.
"""

from collections.abc import Callable
from typing import Any

from tests.prove import step_defects
from tests.prove.planting import Mend, replace_name


def asked_all_the_same() -> Mend:
    """Lengths are announced, and before every message the shapes are exchanged all the same, eight times over."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from parallel.schedule import AnnouncedCommunicator

    def make(look_up: Any) -> Any:
        def planted(self: Any, *arguments: Any) -> Any:
            for _ in range(8):
                P2PCommunicator._communicate_shapes(self, *arguments)
            return look_up(self, *arguments)

        return planted

    return replace_name(AnnouncedCommunicator, "_communicate_shapes", make)


def even_for_auto() -> Mend:
    """`auto` shares layers evenly."""
    from model import balance
    from model.placement import language_split

    return replace_name(
        balance, "balanced_split", lambda _: lambda model, parallel, *rest: language_split(model, parallel)
    )


def turned_round() -> Mend:
    """`auto` lists pipeline stages from the last to the first."""
    from model import balance

    return replace_name(balance, "balanced_split", lambda balanced: lambda *arguments: balanced(*arguments)[::-1])


def freezing_uncounted() -> Mend:
    """`auto` takes every part for a trained one."""
    from model import balance

    def make(part_flops: Any) -> Any:
        return lambda model, trainable, work, recompute: part_flops(model, model.parts, work, recompute)

    return replace_name(balance, "part_flops", make)


def padded_to_the_longest() -> Mend:
    """Rows are padded to a multiple of 2048."""
    import train.batches

    return replace_name(train.batches, "_integers", lambda integers: lambda row, multiple: integers(row, 2048))


def forward_twice() -> Mend:
    """Every microbatch goes forward once for nothing."""
    from parallel.schedule import Schedule

    def make(run: Any) -> Any:
        def planted(self: Any, microbatches: Any, lengths: Any, loss: Any, forward_only: bool = False) -> Any:
            run(self, microbatches, lengths, loss, forward_only=True)
            return run(self, microbatches, lengths, loss, forward_only)

        return planted

    return replace_name(Schedule, "run", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "asked_all_the_same": (asked_all_the_same, ("times/handshake/PP2/stage2",)),
    "even_for_auto": (even_for_auto, ("times/split/stage2/35%",)),
    "turned_round": (turned_round, ("times/split/stage2/15%",)),
    "freezing_uncounted": (freezing_uncounted, ("times/split/stage3/15%",)),
    "padded_to_the_longest": (padded_to_the_longest, ("times/peer/mixed lengths",)),
    "forward_twice": (forward_twice, ("times/peer/equal lengths",)),
    "future_seen_in_a_race": (step_defects.no_causal_mask, ("times/peer/equal lengths",)),
}
