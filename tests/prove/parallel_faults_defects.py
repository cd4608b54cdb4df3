"""Defects for tests/prove/parallel_faults.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove.planting import Mend, replace_name


def watch_looks_away() -> Mend:
    """No rank hears of trouble on another one."""
    from parallel.peers import Peers

    return replace_name(Peers, "posts", lambda _: lambda self: [])


def stuck_seems_to_move() -> Mend:
    """A main thread that stands still passes for one that works, because its watch is alive."""
    import parallel.stacks

    return replace_name(parallel.stacks, "waits_for_ranks", lambda _: lambda: object())


def first_to_raise_blamed() -> Mend:
    """The neighbour of a killed rank raises first, as its connection breaks, and is blamed."""
    import parallel.judge

    def make(choose: Any) -> Any:
        def planted(facts: Any) -> Any:
            return choose(replace(facts, lost={}) if any(post.kind == "raised" for post in facts.posts) else facts)

        return planted

    return replace_name(parallel.judge, "choose", make)


def first_to_complain_blamed() -> Mend:
    """The rank that notices a stall is blamed for it, whoever it waits for."""
    import parallel.judge

    def make(choose: Any) -> Any:
        def planted(facts: Any) -> Any:
            stalled = [post.rank for post in facts.posts if post.kind == "stalled"]
            waiting = [rank for rank, answer in facts.answers.items() if answer.waits]
            return replace(choose(facts), rank=waiting[0]) if stalled and waiting else choose(facts)

        return planted

    return replace_name(parallel.judge, "choose", make)


def samples_of_the_next_microbatch() -> Mend:
    """Sample ids are those of another microbatch."""
    import train.trainer

    def make(sample_names: Any) -> Any:
        def planted(plan: Any, dp_size: int) -> Any:
            names = sample_names(plan, dp_size)

            def rolled(data: Any, dp_rank: int) -> Any:
                told = list(names(data, dp_rank))
                return told[1:] + told[:1]

            return rolled

        return planted

    return replace_name(train.trainer, "sample_names", make)


def samples_of_the_first_replica() -> Mend:
    """Sample ids are those of data-parallel rank 0, whoever failed."""
    import train.trainer

    def make(sample_names: Any) -> Any:
        return lambda plan, dp_size: lambda data, dp_rank: sample_names(plan, dp_size)(data, 0)

    return replace_name(train.trainer, "sample_names", make)


def everybody_judges() -> Mend:
    """Every rank prints the report."""
    from parallel.judge import Judge
    from parallel.peers import Peers

    replace_name(Judge, "is_lowest", lambda _: lambda self, patience: True)
    replace_name(Peers, "order", lambda order: lambda self: order(self) if getattr(self, "spoke", False) else None)

    def make(_: Any) -> Any:
        def planted(self: Any) -> bool:
            self.spoke = True
            return True

        return planted

    return replace_name(Peers, "may_judge", make)


def place_sent_and_not_shared() -> Mend:
    """What is known of a killed rank is what it had sent last."""
    from parallel.place import Neighbour

    return replace_name(Neighbour, "place", lambda _: lambda self: None)


def own_stack_alone() -> Mend:
    """Ranks other than 0 keep their stacks to themselves."""
    import os

    import parallel.stacks

    def make(stack: Any) -> Any:
        return lambda outermost: stack(outermost) if os.environ["RANK"] == "0" else ""

    return replace_name(parallel.stacks, "main_stack", make)


def frozen_left_to_torchrun() -> Mend:
    """A rank that is stopped keeps the job until torchrun kills it."""
    from parallel.peers import Peers

    return replace_name(Peers, "kill", lambda _: lambda self, ranks: None)


def signal_eaten() -> Mend:
    """A job that is asked to end goes on."""
    from parallel.watch import Watch

    def make(listen: Any) -> Any:
        def planted(self: Any, seconds: float) -> None:
            listen(self, seconds)
            self._to_post = [post for post in self._to_post if post.kind != "asked"]

        return planted

    return replace_name(Watch, "_listen", make)


def refusals_with_stacks() -> Mend:
    """What the user can mend is buried under stacks."""
    import parallel.judge

    def make(choose: Any) -> Any:
        return lambda facts: replace(choose(facts), brief=False)

    return replace_name(parallel.judge, "choose", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "watch_looks_away": (watch_looks_away, ("faults/TP2/raise in backward",)),
    "stuck_seems_to_move": (stuck_seems_to_move, ("faults/PP2/sleep in forward",)),
    "first_to_raise_blamed": (first_to_raise_blamed, ("faults/PP2/kill in backward",)),
    "first_to_complain_blamed": (first_to_complain_blamed, ("faults/PP2/sleep in forward",)),
    "samples_of_the_next_microbatch": (samples_of_the_next_microbatch, ("faults/DP2/kill in forward",)),
    "samples_of_the_first_replica": (samples_of_the_first_replica, ("faults/DP2/kill in forward",)),
    "everybody_judges": (everybody_judges, ("faults/TP2/raise in backward",)),
    "place_sent_and_not_shared": (place_sent_and_not_shared, ("faults/DP2/kill in forward",)),
    "own_stack_alone": (own_stack_alone, ("faults/PP2/sleep in forward",)),
    "frozen_left_to_torchrun": (frozen_left_to_torchrun, ("faults/DP2/stop in reduce",)),
    "signal_eaten": (signal_eaten, ("faults/DP2/ask everywhere",)),
    "refusals_with_stacks": (refusals_with_stacks, ("faults/DP2/mendable everywhere",)),
}
