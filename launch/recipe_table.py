"""`python -m launch.recipe_table [--check]`: the table in docs/recipes.md, which recipe is for how many GPUs and what
the planner says of it. `--check` only says whether the page is up to date.
"""

import argparse
import sys
from collections.abc import Iterator

from launch.checkout import ROOT
from launch.planning.plan import STAGES, machine_of, recipe_on
from launch.planning.rows import imagined_step
from launch.planning.search import Search
from launch.planning.stage import Rows, StagePlan, plan_stage
from train.config import RunConfig
from train.crosscheck import world_faults
from train.resolve import compose

PAGE = ROOT / "docs" / "recipes.md"
SIZES, COUNTS = ("2b", "7b", "72b"), (8, 64, 512)
MACHINE = machine_of("h800", gpus_per_node=8, network_bandwidth=50e9, efficiency=0.55)
"""What the paper's kind of cluster has: 80 GB, NVLink at 200 GB/s each way, 400 Gb/s of network for each GPU."""
_BEGIN, _END = "<!-- made by python -m launch.recipe_table -->\n", "<!-- end of what is made -->\n"
_HEAD = (
    "| recipe | GPUs | tensor x pipeline x data | computed again | GB of a rank | s a step | tokens/s | MFU | stage |",
    "|---|---|---|---|---|---|---|---|---|",
)


def entries() -> Iterator[tuple[str, int]]:
    """Recipe and number of GPUs of each row."""
    for size in SIZES:
        for stage in STAGES:
            for gpus in COUNTS:
                yield recipe_on(f"qwen2vl_{size}_{stage}", gpus), gpus


def imagined_rows(run: RunConfig) -> Rows:
    """The same on every machine, whether a recipe's data are there or not."""
    return Rows(steps=(imagined_step(run),), said="imagined rows, 70 % visual tokens")


def planned(name: str, gpus: int) -> StagePlan | None:
    """A recipe on so many GPUs; None where it has no place there."""
    run = compose(name)
    return None if world_faults(run, gpus) else plan_stage(run, imagined_rows(run), gpus, MACHINE)


def row(name: str, gpus: int) -> str:
    """One line of the table."""
    plan = planned(name, gpus)
    if plan is None:
        return _refused(name, gpus)
    parallel, again = plan.run.parallel, plan.run.parallel.recompute
    trained = ("vision", "language") if "vision" in plan.run.stage.trainable else ("language",)
    parts = [part for part in trained if getattr(again, part) == "full"]
    cells = [
        f"`{name}`",
        f"{gpus}",
        f"{parallel.tensor} x {parallel.pipeline} x {plan.data_size}",
        " and ".join(parts) or "nothing",
        f"{plan.most / 1e9:.1f}" + ("" if plan.fits else " DOES NOT FIT"),
        f"{plan.time.seconds:.2f}",
        f"{plan.tokens_per_second:,.0f}",
        f"{plan.mfu:.0%}",
        _time(plan.seconds),
    ]
    return f"| {' | '.join(cells)} |"


def _refused(name: str, gpus: int) -> str:
    run = compose(name)
    search = Search(run, imagined_rows(run), MACHINE)
    least, fewest = search.leanest(gpus), search.fewest()
    assert least is not None and least[1] > MACHINE.room, f"{name} has a layout for {gpus} GPUs, which wants a recipe"
    return f"| `{name}` | {gpus} | none fits: {fewest} GPUs are the fewest | | {least[1] / 1e9:.1f} at least | | | | |"


def _time(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"


def page() -> str:
    """The page with a table of now; what stands around it is kept."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    assert after, f"{PAGE} has no place for the table"
    table = "\n".join([*_HEAD, *(row(name, gpus) for name, gpus in entries())])
    return f"{before}{_BEGIN}\n{table}\n\n{_END}{after}"


def main() -> int:
    """Exit code: with --check 1 if the page on disk is another."""
    parser = argparse.ArgumentParser(prog="python -m launch.recipe_table", description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return int(PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
