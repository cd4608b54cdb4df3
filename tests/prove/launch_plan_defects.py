"""Defects for tests/prove/launch_plan.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove.planting import Mend, replace_name


def flight_forgotten() -> Mend:
    """One microbatch is under way at a time, as the plan has it."""
    import launch.planning.memory

    return replace_name(
        launch.planning.memory, "passes", lambda order: lambda rank, stages, chunks, count: order(0, 1, 1, count)
    )


def pixels_forgotten() -> Mend:
    """Rows are not counted."""
    import launch.planning.memory

    return replace_name(launch.planning.memory, "_given_bytes", lambda _: lambda piece, row: 0)


def half_saved() -> Mend:
    """Half of what autograd saves, as a plan of bf16 would have of an fp32 run."""
    import launch.planning.piece

    def make(row_bytes: Callable[..., int]) -> Callable[..., int]:
        return lambda *arguments, **keywords: row_bytes(*arguments, **keywords) // 2

    return replace_name(launch.planning.piece, "row_bytes", make)


def accumulators_forgotten() -> Mend:
    """bf16 runs have no gradients in fp32, as the plan has it."""
    import tests.harness.planned_memory

    def make(rank_memory: Callable[..., Any]) -> Callable[..., Any]:
        return lambda pieces, held, rank, rows: rank_memory(pieces, replace(held, accumulators=0), rank, rows)

    return replace_name(tests.harness.planned_memory, "rank_memory", make)


def late_warmup() -> Mend:
    """Each pipeline stage but the last runs one forward pass less ahead, in the simulation."""
    import launch.planning.timeline

    def make(order: Callable[..., Any]) -> Callable[..., Any]:
        def planted(rank: int, stages: int, chunks: int, microbatches: int) -> Any:
            return order(min(rank + 1, stages - 1), stages, chunks, microbatches)

        return planted

    return replace_name(launch.planning.timeline, "passes", make)


def text_forgotten() -> Mend:
    """A row of text keeps nothing where the decoder is frozen, on whatever pipeline stage."""
    import launch.planning.piece

    def make(row_bytes: Callable[..., int]) -> Callable[..., int]:
        def planted(model: Any, row: Any, parallel: Any, kernels: Any, trainable: Any, **where: Any) -> int:
            kept = row.patches or "language" in trainable
            return row_bytes(model, row, parallel, kernels, trainable, **where) if kept else 0

        return planted

    return replace_name(launch.planning.piece, "row_bytes", make)


def gathered_once() -> Mend:
    """Backward of a layer that learns gathers no input again, as the plan has it."""
    from launch.planning.messages import TensorAxis

    def make(blocks: Callable[..., Any]) -> Callable[..., Any]:
        def planted(self: TensorAxis, number: int, part: str, *rest: Any) -> Any:
            return blocks(replace(self, trainable=()), number, part, *rest)

        return planted

    return replace_name(TensorAxis, "_blocks", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "flight_forgotten": (flight_forgotten, ("plan/memory/PP2/bf16",)),
    "pixels_forgotten": (pixels_forgotten, ("plan/memory/one process/fp32",)),
    "half_saved": (half_saved, ("plan/memory/one process/bf16",)),
    "accumulators_forgotten": (accumulators_forgotten, ("plan/memory/TP2/bf16",)),
    "text_forgotten": (text_forgotten, ("plan/memory/PP2/text",)),
    "gathered_once": (gathered_once, ("plan/messages/TP2+SP",)),
    "late_warmup": (late_warmup, ("plan/order/PP2",)),
}
