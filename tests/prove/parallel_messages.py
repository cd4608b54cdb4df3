"""What a step sends (item 3)."""

from parallel.config import ParallelConfig
from tests.harness.grid import GRID, grid_steps
from tests.harness.messages import EXAMPLES, FAULTS, counts_of, example_counts, example_rows, message_faults
from tests.harness.watch import watch_step
from tests.prove.case import Case, Cell
from tests.prove.context import Context

LAYOUTS = {
    "TP2+SP": (2, ParallelConfig(tensor=2, sequence_parallel=True)),
    "PP2": (2, ParallelConfig(pipeline=2)),
    "PP2 interleaved": (2, ParallelConfig(pipeline=2, chunks=2)),
    "PP4": (4, ParallelConfig(pipeline=4)),
    "PP4 interleaved": (4, ParallelConfig(pipeline=4, chunks=2)),
    "TP2xPP2": (4, ParallelConfig(tensor=2, pipeline=2)),
    "TP2xPP2+SP": (4, ParallelConfig(tensor=2, pipeline=2, sequence_parallel=True)),
    "TP2xPP2+SP interleaved": (4, ParallelConfig(tensor=2, pipeline=2, sequence_parallel=True, chunks=2)),
    "DP2xPP2 interleaved": (4, ParallelConfig(pipeline=2, chunks=2)),
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"messages/{layout}": _faults(layout) for layout in LAYOUTS}
    return found | {f"messages/example {name}": _example(name) for name in EXAMPLES}


def _faults(layout: str) -> Case:
    names = tuple(f"{layout}: {fault}" for fault in FAULTS)

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        rows, *_ = grid_steps(4)
        watched = context.run(size, watch_step, parallel=parallel, stage="stage2", rows=rows, model=GRID)
        found = message_faults(parallel, rows, watched, GRID.language.hidden_size)
        return [
            Cell(name=name, measured=found[fault], limit=0, unit="count")
            for name, fault in zip(names, FAULTS, strict=True)
        ]

    return Case(item=3, names=names, run=run)


def _example(name: str) -> Case:
    names = (
        f"example {name}: calls that differ from the documented table",
        f"example {name}: bytes that differ from the documented table",
    )

    def run(context: Context) -> list[Cell]:
        example = EXAMPLES[name]
        watched = context.run(
            example.processes, watch_step, parallel=example.parallel, stage="stage2", rows=example_rows()
        )
        wrong, total = [0, 0], [0, 0]
        for rank, seen in enumerate(watched):
            due = example_counts(example.by_stage[rank * example.parallel.pipeline // example.processes])
            counts = counts_of(seen.messages)
            for key in due.keys() | counts.keys():
                for which in (0, 1):
                    one, other = (of.get(key, (0, 0))[which] for of in (due, counts))
                    wrong[which] += abs(one - other)
                    total[which] += one
        return [
            Cell(name=title, measured=of, limit=0, unit=f"of {whole:,}")
            for title, of, whole in zip(names, wrong, total, strict=True)
        ]

    return Case(item=3, names=names, run=run)
