"""A run as a job of real SLURM daemons with two nodes, to which something happens on its way (item 1)."""

from dataclasses import dataclass

from parallel.config import ParallelConfig
from tests.harness import slurm, slurm_story
from tests.harness.clusters_page import Reader, commands
from tests.harness.runs import write_recipe
from tests.harness.slurm_story import Happening
from tests.prove.case import Case, Cell
from tests.prove.context import Context


@dataclass(frozen=True, kw_only=True)
class _Plot:
    what: str
    happens: Happening
    pipeline: int = 1
    restarts: int = 1
    words: tuple[str, ...] = ()


PLOTS = {
    "warned": _Plot(
        what="it is warned before its time limit",
        happens=slurm_story.warned,
        words=("the verdict is again", "the verdict is done"),
    ),
    "node": _Plot(what="a node is lost", happens=slurm_story.node_lost),
    "node/PP2": _Plot(what="a node is lost, PP2", happens=slurm_story.node_lost, pipeline=2),
    "preempted": _Plot(
        what="another job takes its place", happens=slurm_story.preempted, words=("the verdict is again",)
    ),
    "rank": _Plot(
        what="a rank is killed: it keeps its place in the cluster",
        happens=slurm_story.rank_killed,
        restarts=0,
        words=("torchrun: start 2, from step_00000002",),
    ),
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {f"slurm/{key}": _case(key, plot) for key, plot in PLOTS.items()} | {"slurm/page": _page()}


def _check_daemons() -> None:
    lacks = slurm.missing()
    assert not lacks, f"{', '.join(lacks)} missing: apt-get install slurmctld slurmd slurm-client munge, as root"


def _page() -> Case:
    name = "docs/clusters.md, line by line on two nodes: what does not go as it says"

    def run(context: Context) -> list[Cell]:
        _check_daemons()
        context.worlds.close()
        folder = context.scratch / "page"
        folder.mkdir()
        recipes = {
            f"qwen2vl_7b_{stage}": write_recipe(folder / "recipe", context.data, stage, ParallelConfig(), processes=2)
            for stage in ("stage2", "stage3")
        }
        with slurm.cluster(folder / "slurm") as cluster:
            wrong = Reader(slurm=cluster, folder=folder, recipes=recipes).follow()
        return [Cell(name=name, measured=len(wrong), limit=0, unit="; ".join(wrong) or f"of {len(commands())} lines")]

    return Case(item=1, names=(name,), run=run)


def _case(key: str, plot: _Plot) -> Case:
    title = f"`triptych slurm` on two nodes, {plot.what}"
    names = tuple(
        f"{title}: {row}"
        for row in (
            "what is wrong with the job, its log, its verdict, its ranks' logs",
            "processes left",
            "tensors and steps unlike the run's to which nothing happened",
        )
    )

    def run(context: Context) -> list[Cell]:
        _check_daemons()
        context.worlds.close()  # the job needs the cores
        folder = context.scratch / key.replace("/", "_")
        folder.mkdir()
        parallel = ParallelConfig(pipeline=plot.pipeline)
        recipe = write_recipe(folder / "recipe", context.data, "stage2", parallel, processes=2)
        with slurm.cluster(folder / "slurm") as cluster:
            straight = context.scratch / f"straight_{plot.pipeline}"
            due = {"restarts": plot.restarts, "words": plot.words, "plant": context.plant}
            told = slurm_story.tell(cluster, recipe, straight, folder, plot.happens, **due)  # type: ignore[arg-type]
        values = (len(told.wrong), told.left_over, told.unlike)
        units = (", ".join(told.wrong[:-1]) or f"{told.seconds:.0f} s to the end", "processes", "tensors and steps")
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, value, unit in zip(names, values, units, strict=True)
        ]

    return Case(item=1, names=names, run=run)
