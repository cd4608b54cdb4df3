"""Defects for tests/prove/launch_watch.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove.planting import Mend, replace_name


def copies_counted_twice() -> Mend:
    """Every tensor rank counts what all of them hold."""
    import parallel.zero

    return replace_name(
        parallel.zero,
        "squared_norms",
        lambda squares: lambda pieces, parts: squares([replace(piece, counts=True) for piece in pieces], parts),
    )


def own_share_alone() -> Mend:
    """A rank tells the norms of its own share."""
    import parallel.zero

    def make(sum_over: Any) -> Any:
        def planted(group: Any, values: list[float]) -> list[float]:
            summed: list[float] = sum_over(group, values)
            return [*summed[:2], *map(float, values[2:])] if group is None else summed

        return planted

    return replace_name(parallel.zero, "sum_over", make)


def sources_shifted() -> Mend:
    """A token's loss goes to the source of the token after it."""
    import tests.harness.layouts

    def make(announce: Any) -> Any:
        def planted(*arguments: Any) -> Any:
            announced = announce(*arguments)
            rows = [replace(row, sources=row.sources.roll(-1, 1)) for row in announced.rows]
            return replace(announced, rows=rows)

        return planted

    return replace_name(tests.harness.layouts, "announce", make)


def unmasked_losses() -> Mend:
    """Targets of a source are counted with all of its tokens."""
    import train.batches

    def make(of_sources: Any) -> Any:
        def planted(segments: Any, sources: Any, supervised: Any, count: int) -> Any:
            fields = of_sources(segments, sources, supervised, count)
            fields[2] = fields[1]
            return fields

        return planted

    return replace_name(train.batches, "_of_sources", make)


def waits_unlike() -> Mend:
    """Every stopwatch shows the same."""
    from parallel.stopwatch import Stopwatch

    return replace_name(Stopwatch, "take", lambda _: lambda self: 1.0)  # as if all of the time were waited


def autoescape_off() -> Mend:
    """The page takes text for HTML."""
    import jinja2

    from launch.pages import report

    class Planted(jinja2.Environment):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "autoescape": False})

    class Module:
        Environment, FileSystemLoader, StrictUndefined = Planted, jinja2.FileSystemLoader, jinja2.StrictUndefined

    return replace_name(report, "jinja2", lambda _: Module)


def everything_is_well() -> Mend:
    """No limit is ever passed."""
    from launch.pages import health

    return replace_name(health, "_judged", lambda _: lambda value, limits: "good")


def nested_left_out() -> Mend:
    """Only numbers at the top of a row go to wandb and TensorBoard."""
    from train import metrics

    def make(_: Any) -> Any:
        return lambda row: {key: value for key, value in row.items() if isinstance(value, int | float)}

    return replace_name(metrics, "scalars", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "copies_counted_twice": (copies_counted_twice, ("watch/norms/TP2/stage2/fp32",)),
    "own_share_alone": (own_share_alone, ("watch/norms/DP2/stage2/fp32",)),
    "sources_shifted": (sources_shifted, ("watch/losses/DP2",)),
    "unmasked_losses": (unmasked_losses, ("watch/losses/DP2",)),
    "waits_unlike": (waits_unlike, ("watch/bubble",)),
    "page_not_escaped": (autoescape_off, ("watch/page",)),
    "everything_is_well": (everything_is_well, ("watch/health",)),
    "nested_left_out": (nested_left_out, ("watch/tensorboard",)),
}
