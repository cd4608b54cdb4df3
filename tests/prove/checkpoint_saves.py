"""What a commit holds (item 1), what is not written again (item 2), and what a save costs (item 3)."""

from pathlib import Path

from tests.harness import save_measures
from tests.prove.case import Case, Cell
from tests.prove.context import Context
from train.config import RunConfig


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {
        "commit": _commit(),
        "frozen": _frozen(),
        "at the call": _at_the_call(),
        "given up": _given_up(),
        "stall": _stall(),
    }


def _frozen_run(context: Context) -> RunConfig:
    return context.keep(
        "frozen run",
        lambda: save_measures.frozen_run(context.worlds.nursery, context.scratch, context.data, context.plant),
    )


def _commit() -> Case:
    name = "of what a commit has to hold, read with json, yaml and safetensors alone: missing"

    def run(context: Context) -> list[Cell]:
        missing = save_measures.missing_in_commit(_frozen_run(context))
        return [Cell(name=name, measured=len(missing), limit=0, unit=", ".join(missing[:3]) or "things")]

    return Case(item=1, names=(name,), run=run)


def _frozen() -> Case:
    names = (
        "frozen parts: files that the fourth save wrote again",
        "frozen parts, older commits pruned: what is wrong with the one that refers to them",
    )

    def run(context: Context) -> list[Cell]:
        values = save_measures.frozen_again(Path(_frozen_run(context).run_dir))
        return [
            Cell(name=name, measured=value, limit=0, unit="count") for name, value in zip(names, values, strict=True)
        ]

    return Case(item=2, names=names, run=run)


def _at_the_call() -> Case:
    name = "training goes on before the first byte is written: tensors that are not as they were at the call"

    def run(context: Context) -> list[Cell]:
        wrong, total = context.run_here(save_measures.written_later, folder=context.scratch / "later")
        return [Cell(name=name, measured=wrong, limit=0, unit=f"of {total}")]

    return Case(item=3, names=(name,), run=run)


def _given_up() -> Case:
    title = "rank 1 of DP2 writes slowly, and its save is given up"
    names = tuple(
        f"{title}: {what}"
        for what in (
            "the next save and the one after it that are not committed",
            "the run is asked to end, and its last save is not committed",
            "tensors of the last save that are not as they were at its call",
        )
    )

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / "given up"
        found = context.run(2, save_measures.saved_after_slow_ones, folder=folder)[0]
        values = [(found[0], "of 2"), (found[1], "of 1")]
        if not found[1]:
            wrong, total = context.run_here(save_measures.unlike_at_the_call, folder=folder)
            values.append((wrong, f"of {total}"))
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, (value, unit) in zip(names, values, strict=False)
        ]

    return Case(item=3, names=names, run=run)


def _stall() -> Case:
    names = (
        "a save written beside training: time it holds training up, over that of one waited for",
        "a save written beside training: time it holds training up, over a step's",
    )

    def run(context: Context) -> list[Cell]:
        found = context.run(2, save_measures.stall_ratios, folder=context.scratch / "stall")[0]
        beside, waited = found["beside_over_step"], found["waited_over_step"]
        size = f"{found['bytes'] / 1e6:.0f} MB, {found['bytes_per_second'] / 1e6:.0f} MB/s"
        # A step of the tiny model takes a tenth of a second: there is little that a copy could be less than.
        values = ((beside / waited, 0.5, f"waited for: {waited:.2f} steps"), (beside, 0.5, size))
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, (value, limit, unit) in zip(names, values, strict=True)
        ]

    return Case(item=3, names=names, run=run)
