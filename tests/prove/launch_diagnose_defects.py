"""Defects for tests/prove/launch_diagnose.py and launch_evaluate.py. Each breaks this process, and can be mended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tests.prove.planting import Mend, replace_name


def ranks_leave_nothing() -> Mend:
    """Only the report is kept; ranks write no files of their own."""
    import parallel.watch

    return replace_name(parallel.watch, "dump_own", lambda _: lambda *given: None)


def calls_not_kept() -> Mend:
    """Nobody says which calls into process groups came last."""
    import parallel.calls

    return replace_name(parallel.calls, "last_calls", lambda _: lambda: "")


def stuck_is_final() -> Mend:
    """A job that is stuck counts as failed, and is not put back into the queue."""
    import parallel.judge

    def make(choose: Callable[..., Any]) -> Callable[..., Any]:
        return lambda facts: replace(choose(facts), no_progress=False)

    return replace_name(parallel.judge, "choose", make)


def stuck_for_ever() -> Mend:
    """A job that is stuck at one place is started again and again."""
    import train.ending

    return replace_name(train.ending, "_times_stuck", lambda _: lambda run_dir, newest: 1)


def replayed_with_later_weights() -> Mend:
    """A step is run with other weights than before it, as whoever begins with its own checkpoint does."""
    import launch.replay

    def make(train_step: Callable[..., Any]) -> Callable[..., Any]:
        def planted(parts: Any, state: Any) -> Any:
            if parts.listen is None:
                return train_step(parts, state)
            with torch.no_grad():
                for parameter in parts.schedule._chunks[0].parameters():
                    parameter.mul_(1.0 - 1e-3)
            return train_step(parts, state)

        return planted

    return replace_name(launch.replay, "train_step", make)


def replay_forgets_moments() -> Mend:
    """The steps that lead to the one that is replayed begin with an optimizer that knows nothing."""
    import train.trainer

    return replace_name(train.trainer, "load_optimizer", lambda _: lambda *given: None)


def samples_of_the_row_before() -> Mend:
    """Losses of samples are those of the neighbours."""
    import launch.replay

    def make(by_sample: Callable[..., Any]) -> Callable[..., Any]:
        def planted(*given: Any) -> Any:
            sums, counts = by_sample(*given)
            return sums.roll(1), counts.roll(1)

        return planted

    return replace_name(launch.replay, "by_sample", make)


def work_with_waits() -> Mend:
    """What a rank waits for others in the reduction counts as its own forward."""
    import train.step

    def make(note: Callable[..., Any]) -> Callable[..., Any]:
        def planted(parts: Any) -> None:
            note(parts)
            parts.schedule.board.spent._now["forward"] = parts.schedule.board.spent._now["data"]

        return planted

    return replace_name(train.step, "_note_work", make)


def evaluation_draws() -> Mend:
    """What an evaluation draws is missing in training's random numbers."""
    import train.evaluate

    @contextmanager
    def disturbed(groups: Any) -> Iterator[None]:
        yield

    return replace_name(train.evaluate, "undisturbed", lambda _: disturbed)


def evaluation_learns() -> Mend:
    """An evaluation leaves a trace in a weight, as running statistics would."""
    from train.evaluate import Evaluation

    def make(losses: Callable[..., Any]) -> Callable[..., Any]:
        def planted(self: Any, *given: Any) -> Any:
            found = losses(self, *given)
            next(self._schedule._chunks[0].parameters()).data.view(-1)[0] += 1e-3
            return found

        return planted

    return replace_name(Evaluation, "losses", make)


def next_window_counted() -> Mend:
    """Rows that only fill up the last step count as held out."""
    import train.evaluate

    def make(plan: Any) -> Any:
        class Planted(plan):  # type: ignore[misc]
            def step(self, cursor: Any) -> Any:
                found = super().step(cursor)
                return replace(found, rows=tuple(replace(row, window=0) for row in found.rows))

        return Planted

    return replace_name(train.evaluate, "Plan", make)


def one_replica_counted() -> Mend:
    """Losses are those of the replica that asks."""
    import train.evaluate

    return replace_name(train.evaluate, "sum_over", lambda _: lambda group, values: list(values))


def hanging_waited_for() -> Mend:
    """A command that hangs is forgotten at the end of the run, without a word."""
    from train.beside import Beside

    return replace_name(Beside, "wait", lambda _: lambda self, seconds, asked_to_end: None)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "ranks_leave_nothing": (ranks_leave_nothing, ("watchdog/DP2",)),
    "calls_not_kept": (calls_not_kept, ("watchdog/DP2",)),
    "stuck_is_final": (stuck_is_final, ("watchdog/DP2",)),
    "stuck_for_ever": (stuck_for_ever, ("watchdog/DP2",)),
    "replayed_with_later_weights": (replayed_with_later_weights, ("replay/PP2",)),
    "replay_forgets_moments": (replay_forgets_moments, ("replay/one process",)),
    "samples_of_the_row_before": (samples_of_the_row_before, ("replay/PP2",)),
    "work_with_waits": (work_with_waits, ("straggler/DP2",)),
    "evaluation_draws": (evaluation_draws, ("evaluate/undisturbed/DP2",)),
    "evaluation_learns": (evaluation_learns, ("evaluate/undisturbed/DP2",)),
    "next_window_counted": (next_window_counted, ("evaluate/losses/DP2",)),
    "one_replica_counted": (one_replica_counted, ("evaluate/losses/DP2",)),
    "hanging_waited_for": (hanging_waited_for, ("evaluate/beside",)),
}
