"""`make quickstart`: sample data, three stages on this machine, held-out answers, and a page that shows them.

Nothing here trains: every stage is `launch/torchrun.sh --config-name quickstart_STAGE`, as on a cluster.
"""

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.encoding.tokenizer import load_tokenizer
from data.index.build import build_index
from data.index.file import open_index
from launch.answering.score import Heldout, Score, constant_shares, read_heldout, score_folder
from launch.checkout import ROOT, CheckoutError, check_checkout
from launch.pages.report import write_quickstart_report
from launch.pages.result import Curve, print_table, read_curve, task_table
from train.config import RunConfig
from train.resolve import RecipeError, compose

OUT = Path("runs/quickstart")
STAGES = ("language", "stage1", "stage2", "stage3")
TAIL_LINES = 60


class QuickstartError(RuntimeError):
    """A step failed; the message says which, and shows the end of its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be run: the same overrides on every stage."""

    runs: dict[str, RunConfig]
    overrides: list[str]
    processes: int

    @property
    def layout(self) -> str:
        """Sizes of the mesh axes, as in `dp2-tp1-pp1`."""
        parallel = self.runs["stage1"].parallel
        data = parallel.data_size(self.processes)
        return f"dp{data}-tp{parallel.tensor}-pp{parallel.pipeline}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exits 1 with the reason when a step fails, 2 when the recipes cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m launch.quickstart", description=__doc__)
    parser.add_argument("--processes", type=int, help="default: 2, or 1 on a machine with one GPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every stage, e.g. parallel=tp2")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    try:
        check_checkout()
        plan = make_plan(options.overrides, options.processes)
        run_all(plan)
    except (CheckoutError, RecipeError) as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(2) from None
    except QuickstartError as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(1) from None


def make_plan(overrides: list[str], processes: int | None = None, gpus: int | None = None) -> Plan:
    """Resolve all recipes before anything is made. Raises RecipeError."""
    gpus = torch.cuda.device_count() if gpus is None else gpus
    parallel = compose("quickstart_stage1", overrides).parallel
    least = parallel.tensor * parallel.pipeline
    if processes is None:
        wanted = 1 if gpus == 1 else 2
        processes = least * max(1, -(-wanted // least))
        if gpus == processes == 1:
            print("one GPU: 1 process")
    if 0 < gpus < processes:
        raise RecipeError(
            f"{processes} processes for {gpus} GPU(s): each process needs one of its own; choose a layout of {gpus} "
            "or fewer, or run on the CPU with CUDA_VISIBLE_DEVICES= in front of the command"
        )
    runs = {stage: compose(f"quickstart_{stage}", overrides, world_size=processes) for stage in STAGES}
    return Plan(runs=runs, overrides=overrides, processes=processes)


def run_all(plan: Plan) -> None:
    """Everything, in order. Raises QuickstartError."""
    # megatron-core takes seconds to import and warns of what is not installed: after the recipes are checked, quietly.
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*")
    from launch.before import export_start
    from launch.checkpoints.export import export

    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    say(f"layout {plan.layout}, {plan.processes} process(es); results go to {OUT}/")
    clean(OUT)
    prepare_data(OUT / "data")
    say("reading the held-out questions")
    heldout = read_heldout(OUT / "data" / "heldout", plan.runs["stage3"].data)
    scores: dict[str, Score] = {}
    for stage in STAGES:
        run = plan.runs[stage]
        if stage == "stage1":
            export_start(run, OUT / "export" / "before")
            scores["before"] = _score("before", heldout, say)
        say(f"training {stage}: {', '.join(run.stage.trainable)}")
        train(stage, plan)
        if stage == "language":
            continue
        state = "after" if stage == "stage3" else stage
        export(run.run_dir, OUT / "export" / state)
        scores[state] = _score(state, heldout, say)
    grey = score_folder(OUT / "export" / "after", heldout, grey=True)
    curves = {stage: read_curve(Path(plan.runs[stage].run_dir)) for stage in STAGES}
    result = _result(plan, curves, scores, grey, heldout)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_json(OUT / "answers.json", {state: score.answers for state, score in scores.items()} | {"grey": grey.answers})
    write_json(OUT / "result.json", result)
    folders = {stage: Path(run.run_dir) for stage, run in plan.runs.items()}
    write_quickstart_report(OUT / "report.html", result, folders, scores, heldout, OUT / "data" / "heldout")
    print_table(result["tasks"])
    losses = result["caption_loss"]
    print(f"caption loss after stage 1: {losses['right']:.3f} right picture, {losses['shuffled']:.3f} another's")
    say(f"done: {OUT}/result.json, {OUT}/report.html; the model is in {OUT}/export/after")


def _score(state: str, heldout: Heldout, say: Callable[[str], None]) -> Score:
    score = score_folder(OUT / "export" / state, heldout, losses=state in ("before", "stage1"))
    mean = sum(score.shares.values()) / len(score.shares)
    say(f"asked {state}: {100 * mean:.1f}% right over {len(score.shares)} tasks ({score.seconds:.0f} s)")
    return score


def _result(
    plan: Plan, curves: dict[str, Curve], scores: dict[str, Score], grey: Score, heldout: Heldout
) -> dict[str, Any]:
    return {
        "seconds": 0.0,
        "layout": plan.layout,
        "stages": {stage: curve.summary() for stage, curve in curves.items() if stage != "language"},
        "tasks": task_table(scores, grey.shares, constant_shares(heldout)),
        "language": curves["language"].summary(),
        "caption_loss": scores["stage1"].losses,
        "processes": plan.processes,
        "overrides": plan.overrides,
        "scoring_seconds": round(sum(score.seconds for score in (*scores.values(), grey)), 1),
    }


def clean(out: Path) -> None:
    """Remove what an earlier quickstart trained; its data and decoded frames stay."""
    for name in (*STAGES, "export"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("result.json", "report.html", "answers.json"):
        (out / name).unlink(missing_ok=True)


def prepare_data(folder: Path) -> None:
    """Sample data and an index beside every source; both are reused when they still fit. Raises QuickstartError."""
    print(f"sample data: making or checking {folder} (under a minute)", flush=True)
    command = [sys.executable, "-m", "data.samples", "--out", str(folder)]
    run_logged(command, folder.parent / "data.log", "making the sample data", show="")
    tokenizer = load_tokenizer(folder / "tokenizer")
    sources = sorted({path.parent for path in folder.glob("*/*/*.tar")})
    built = 0
    for source in sources:
        try:
            open_index(source).check(tokenizer)
        except ValueError:
            index = build_index(source, tokenizer)
            built += 1
            print(f"sample data: indexed {source.relative_to(folder)}, {len(index)} samples", flush=True)
    print(f"sample data: {len(sources)} sources, {built} indexed now", flush=True)


def train(stage: str, plan: Plan) -> None:
    """One stage through the launch script. Raises QuickstartError with the end of its log."""
    command = ["launch/torchrun.sh", "--config-name", f"quickstart_{stage}", *plan.overrides]
    environment = os.environ | {"NPROC_PER_NODE": str(plan.processes), "PYTHON": sys.executable}
    log = OUT / stage / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Warnings of libraries stay in the log; what the trainer tells about its steps is shown.
    run_logged(command, log, f"stage {stage}", show=stage, environment=environment)


def run_logged(
    command: Sequence[str], log: Path, what: str, *, show: str, environment: dict[str, str] | None = None
) -> None:
    """Run `command` with all it says in `log`; lines that begin with `show` are printed too. Raises QuickstartError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                tail.append(line)
                if line.startswith(show):
                    print(line, end="", flush=True)
        except BaseException:
            process.terminate()  # torchrun hands it on to its processes
            raise
    if process.returncode:
        raise QuickstartError(
            f"{what} ended with status {process.returncode}; the end of {log}:\n"
            + "".join(f"    {line}" for line in tail)
        )


def write_json(path: Path, value: object) -> None:
    """By rename: a reader meets the whole file or none."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
