"""`triptych plan`: will it fit, how long will it take, and which layout would do better; without a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.planning.search import Search
from launch.planning.show import layout_said, plan_data, plan_lines, ranking_lines
from launch.planning.speed import Machine
from launch.planning.stage import Rows, StagePlan, plan_stage, stage_rows
from launch.reports import Report
from model.shards import report_lines, shard_report
from parallel.gpus import GPUS
from train.config import RunConfig
from train.crosscheck import world_faults
from train.resolve import RECIPES, compose

STAGES = ("stage1", "stage2", "stage3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is to be planned."""

    gpus: int | None
    """None: one replica of each recipe's layout."""
    machine: Machine
    price: float | None = None
    """Of a GPU and hour, in whatever currency."""
    search: bool = False
    parameters: bool = False
    """Tell parameters rank by rank as well."""


def machine_of(gpu: str, gpus_per_node: int, network_bandwidth: float, efficiency: float) -> Machine:
    """Raises ValueError for a GPU that is not known, or numbers that none could have."""
    if gpu.upper() not in GPUS:
        raise ValueError(f"--gpu {gpu} is not known; known are {', '.join(name.lower() for name in GPUS)}")
    if not 0.01 <= efficiency <= 1:
        raise ValueError(f"--efficiency {efficiency:g} is a share of the GPU's FLOP/s; give one of 0.01 to 1")
    if not network_bandwidth > 0:
        raise ValueError(f"--network {network_bandwidth / 1e9:g} is in GB/s and must be more than 0")
    return Machine(
        gpu=GPUS[gpu.upper()],
        gpus_per_node=gpus_per_node,
        network_bandwidth=network_bandwidth,
        efficiency=efficiency,
    )


def recipes_of(name: str, gpus: int | None = None) -> list[str]:
    """The recipe itself, or the three stages of a family: qwen2vl_7b is qwen2vl_7b_stage1 and so on, each by its recipe
    for so many GPUs."""
    if (RECIPES / f"{name}.yaml").exists():
        return [name]
    stages = [f"{name}_{stage}" for stage in STAGES if (RECIPES / f"{name}_{stage}.yaml").exists()]
    return [recipe_on(stage, gpus) for stage in stages] or [name]


def recipe_on(name: str, gpus: int | None) -> str:
    """NAME_GPUS, where so many GPUs have a recipe of their own; else NAME."""
    own = f"{name}_{gpus}"
    return own if (RECIPES / f"{own}.yaml").exists() else name


def planned(name: str, overrides: Sequence[str], asked: Asked) -> Report:
    """One recipe, or each stage of a family. The report is not good where one does not fit as it is.

    Raises ValueError where there is nothing to reckon with.
    """
    lines: list[str] = []
    data: list[dict[str, Any]] = []
    good = True
    for recipe in recipes_of(name, asked.gpus):
        run = compose(recipe, list(overrides))
        said, found, fits = _stage(recipe, run, asked)
        lines += [*([""] if lines else []), *said]
        data.append(found)
        good = good and fits
    return Report(lines=lines, data=data, good=good)


def _stage(recipe: str, run: RunConfig, asked: Asked) -> tuple[list[str], dict[str, Any], bool]:
    gpus = asked.gpus or run.parallel.tensor * run.parallel.pipeline
    rows = stage_rows(run)
    if asked.search:
        return _searched(recipe, run, rows, gpus, asked)
    faults = world_faults(run, gpus)
    if faults:
        lines = [f"{recipe} DOES NOT RUN on {gpus} {asked.machine.gpu.name}: {'; '.join(faults)}"]
        cure = _cure(run, rows, gpus, asked.machine)
        lines.append(f"what would: {cure}")
        return lines, {"recipe": recipe, "gpus": gpus, "fits": False, "cure": cure}, False
    plan = plan_stage(run, rows, gpus, asked.machine)
    lines = [f"{recipe}: {run.model.name}, {run.stage.name} ({', '.join(run.stage.trainable)} learn)"]
    if asked.parameters:
        lines += report_lines(shard_report(plan.run.model, plan.run.parallel), plan.run.parallel)
    lines += plan_lines(plan, asked.price)
    if not plan.fits:
        lines += [f"DOES NOT FIT: {_why(plan)}", f"what would: {_cure(run, rows, gpus, asked.machine)}"]
    return lines, {"recipe": recipe, **plan_data(plan, asked.price)}, plan.fits


def _searched(
    recipe: str, run: RunConfig, rows: Rows, gpus: int, asked: Asked
) -> tuple[list[str], dict[str, Any], bool]:
    search = Search(run, rows, asked.machine)
    found = search.fitting(gpus)
    if not found:
        said = no_layout(run, search, gpus, asked.machine)
        data = {"recipe": recipe, "gpus": gpus, "layouts": [], "fits": False, "cure": said}
        return [f"{recipe}: no layout fits {gpus} {asked.machine.gpu.name}: {said}"], data, False
    head = f"{recipe}: layouts that fit {gpus} {asked.machine.gpu.name}, fastest first; {rows.said}"
    data = {"recipe": recipe, "gpus": gpus, "layouts": [plan_data(plan, asked.price) for plan in found], "fits": True}
    return [head, *ranking_lines(found, asked.price)], data, True


def _why(plan: StagePlan) -> str:
    stage, memory = max(enumerate(plan.fullest), key=lambda pair: pair[1].most)
    gpu = plan.machine.gpu
    return (
        f"a rank of pipeline stage {stage} may need {memory.most / 1e9:.1f} GB, and of the {gpu.memory / 1e9:.0f} GB "
        f"of one {gpu.name} {plan.machine.room / 1e9:.1f} are to be had"
    )


def _cure(run: RunConfig, rows: Rows, gpus: int, machine: Machine) -> str:
    search = Search(run, rows, machine)
    if found := search.fitting(gpus):
        best = found[0]
        return f"{layout_said(best.run.parallel)} ({best.most / 1e9:.1f} GB, {best.time.seconds:.1f} s a step)"
    return f"no layout on {gpus}: {no_layout(run, search, gpus, machine)}"


def no_layout(run: RunConfig, search: Search, gpus: int, machine: Machine) -> str:
    """Why none fits, and the fewest GPUs of which one does."""
    least = search.leanest(gpus)
    if least is None:
        return f"the model and its rows have none; {_fewest(run, search, machine)}"
    layout, nbytes = least
    return (
        f"the leanest, tensor {layout.tensor} x pipeline {layout.pipeline} with all recomputed, takes "
        f"{nbytes / 1e9:.1f} GB a rank, and {machine.room / 1e9:.1f} are to be had; {_fewest(run, search, machine)}"
    )


def _fewest(run: RunConfig, search: Search, machine: Machine) -> str:
    gpus = search.fewest()
    if gpus is None:
        return f"none on {machine.gpu.name} of any number; lower data.tokens_per_row={run.data.tokens_per_row}"
    best = search.fitting(gpus)[0]
    return (
        f"{gpus} are the fewest that it fits, with {layout_said(best.run.parallel)} ({best.most / 1e9:.1f} GB a rank)"
    )
