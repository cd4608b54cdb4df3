"""The recipes that people need, as the planner sees them (item 7)."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from launch import recipe_table
from launch.planning.plan import STAGES
from launch.planning.search import Search
from launch.planning.stage import StagePlan
from tests.prove.case import Case, Cell
from tests.prove.context import Context
from train.resolve import compose

TOO_LARGE = {"qwen2vl_72b_stage2": 8, "qwen2vl_72b_stage3": 8}
"""Recipes, and GPUs that no layout of theirs fits."""
ROOM = "most that a rank of any recipe may need, of what is to be had"
NAMED = "recipes for 8, 64 and 512 GPUs that are missing"
PAGE = "rows of docs/recipes.md that the planner does not say"
LEARNT = "recipes for 512 GPUs in which more than layout and checkpoints differs"
MINUTE = "processor seconds to plan the 72B's three stages on 512 GPUs, with their search"


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {
        "recipes/fit": Case(item=7, names=(ROOM, NAMED), run=_fit),
        "recipes/page": Case(item=7, names=(PAGE,), run=_page),
        "recipes/learnt": Case(item=7, names=(LEARNT,), run=_learnt),
        **{f"recipes/refused {name}": _refused(name, gpus) for name, gpus in TOO_LARGE.items()},
        "recipes/minute": Case(item=3, names=(MINUTE,), run=_minute),
    }


def _fit(context: Context) -> list[Cell]:
    plans = context.run_here(_plans)
    missing = [pair for pair, plan in plans.items() if plan is None and pair not in TOO_LARGE.items()]
    most = max(plan.most / plan.machine.room for plan in plans.values() if plan is not None)
    return [
        Cell(name=ROOM, measured=round(most, 3), limit=1.0, unit="share"),
        Cell(name=NAMED, measured=len(missing), limit=0, unit=f"of {len(plans)}"),
    ]


def _page(context: Context) -> list[Cell]:
    rows = context.run_here(_rows)
    lines = recipe_table.PAGE.read_text().splitlines()
    return [Cell(name=PAGE, measured=sum(row not in lines for row in rows), limit=0, unit=f"of {len(rows)}")]


def _learnt(context: Context) -> list[Cell]:
    return [Cell(name=LEARNT, measured=len(context.run_here(_differing)), limit=0, unit="recipes")]


def _plans() -> dict[tuple[str, int], StagePlan | None]:
    return {pair: recipe_table.planned(*pair) for pair in recipe_table.entries()}


def _rows() -> list[str]:
    return [recipe_table.row(*pair) for pair in recipe_table.entries()]


def _differing() -> list[str]:
    """Recipes for 512 GPUs that would learn something else than those they are made of."""
    found = []
    for name in sorted({name for name, _ in recipe_table.entries() if name.endswith("_512")}):
        run, other = compose(name), compose(name.removesuffix("_512"))
        if replace(run, parallel=other.parallel, checkpoint=other.checkpoint) != other:
            found.append(name)
    return found


def _refused(name: str, gpus: int) -> Case:
    rows = (
        f"{name} on {gpus}: exit codes and words of the refusal that are not there",
        f"{name}: layouts on any smaller number of GPUs than the fewest that it names",
        f"{name}: 1 where no layout fits the fewest GPUs that it names",
    )

    def run(context: Context) -> list[Cell]:
        code, said = context.run_here(_plan, words=("--config-name", name, "--gpus", str(gpus), "--gpu", "h800"))
        words = ("DOES NOT RUN", "the leanest", " GB a rank, and 73.8 are to be had", "are the fewest that it fits")
        told = re.search(r"(\d+) are the fewest", said)
        fewest = int(told[1]) if told else 1
        asked = compose(name)
        search = Search(asked, recipe_table.imagined_rows(asked), recipe_table.MACHINE)
        fewer = [plan for world in (*range(1, 8), *range(8, fewest, 8)) for plan in search.fitting(world)]
        lacking = (code == 0) + sum(word not in said for word in words)
        return [
            Cell(name=rows[0], measured=lacking, limit=0, unit=f"of {1 + len(words)}"),
            Cell(name=rows[1], measured=len(fewer), limit=0, unit="layouts"),
            Cell(name=rows[2], measured=int(not search.fitting(fewest)), limit=0, unit=f"at {fewest} GPUs"),
        ]

    return Case(item=7, names=rows, run=run)


def _plan(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of `triptych plan`, in this process."""
    from launch.cli import main

    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            main(["plan", *words])
    except SystemExit as left:
        return int(left.code or 0), told.getvalue()
    return 0, told.getvalue()


def _minute(context: Context) -> list[Cell]:
    """Of a process of its own, start and imports included; on a shared host the clock on the wall means nothing."""
    before = os.times()
    for more in ((), ("--search",)):
        command = [sys.executable, "-m", "launch.cli", "plan", "--config-name", "qwen2vl_72b", "--gpus", "512"]
        done = subprocess.run([*command, "--gpu", "h800", *more], capture_output=True, text=True, timeout=1200)
        said = [line for line in done.stdout.splitlines() if re.match(r"qwen2vl_72b_stage\d", line)]
        assert done.returncode == 0 and len(said) == len(STAGES), done.stdout + done.stderr
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    return [Cell(name=MINUTE, measured=round(seconds, 1), limit=60.0, unit="s")]
