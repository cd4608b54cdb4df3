"""What ranks look at together before they train, with something that is not in order (item 2)."""

from dataclasses import replace

from parallel.config import ParallelConfig
from tests.harness.looks import ODD, looked, missed
from tests.harness.runs import read_recipe, write_recipe
from tests.prove.case import Case, Cell
from tests.prove.context import Context

WORDS = {
    "clock": "a clock that is a minute ahead",
    "code": "another checkout on one node",
    "folder": "a run folder that one node does not share",
    "files": "data that one node does not have",
    "disk": "a disk without room for the checkpoints",
    "link": "a link of the data axis that is slower than the others",
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {"preflight/sound": _sound()} | {f"preflight/{odd}": _case(odd) for odd in ODD}


def _run(context: Context, odd: str) -> list[tuple[list[str], str]]:
    recipe = write_recipe(context.scratch / "preflight", context.data, "stage2", ParallelConfig(), processes=4)
    run = replace(read_recipe(recipe), run_dir=str(context.scratch / "preflight" / odd))
    return context.run(4, looked, run=run, odd=odd)


def _sound() -> Case:
    name = "four nodes in order: rows of the table that are missing or fail"

    def run(context: Context) -> list[Cell]:
        told = _run(context, "")
        due = {"files", "store", "versions", "clocks", "run folder", "disk", "data axis"}
        fine = {line.split(" ok ")[0].strip() for line in told[0][0] if " ok " in line}
        return [Cell(name=name, measured=len(due ^ fine) + len(told[0][1]), limit=0, unit=f"of {len(due)}")]

    return Case(item=2, names=(name,), run=run)


def _case(odd: str) -> Case:
    name = f"four nodes, {WORDS[odd]}: ranks that go on, words that are wrong or missing"

    def run(context: Context) -> list[Cell]:
        wrong = missed(_run(context, odd), odd)
        return [Cell(name=name, measured=len(wrong), limit=0, unit=", ".join(wrong) or "all ranks end, one line, cure")]

    return Case(item=2, names=(name,), run=run)
