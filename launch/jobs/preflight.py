"""`python -m launch.jobs.preflight WORLD_SIZE --config-name RECIPE [--config-path DIR] [key=value ...]
[--node | --files] [--print]`

Says in one process what would stop a run: torchrun.sh calls it on each node before it starts any other. Without
`--node` or `--files` it looks at the recipe alone, so that a recipe can be tried where its data is not. What ranks have
to look at together comes after it (train/preflight.py).
"""

import argparse
import importlib.util
import netrc
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from launch.checkout import ROOT, CheckoutError, check_checkout
from train.checks import Check, PreflightError
from train.config import RunConfig
from train.folder import check_writable
from train.resolve import RecipeError, compose, to_yaml


def main(arguments: list[str] | None = None) -> None:
    """Exit 0 if the run can start, 2 with the reasons if not."""
    parser = argparse.ArgumentParser(prog="python -m launch.jobs.preflight", description=__doc__, allow_abbrev=False)
    parser.add_argument("world_size", type=int, help="processes of the whole job")
    parser.add_argument("--config-name", required=True, help="recipe, without .yaml")
    parser.add_argument("--config-path", type=Path, help="folder of the recipe, instead of recipes/")
    parser.add_argument("--node", action="store_true", help="look at the run folder and wandb too")
    parser.add_argument("--files", action="store_true", help="at the tokenizer, indexes and runs that it names as well")
    parser.add_argument("--print", action="store_true", help="show the resolved recipe")
    options, overrides = parser.parse_known_args(arguments)
    if unknown := [word for word in overrides if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        check_checkout()
        run = compose(options.config_name, overrides, folder=options.config_path, world_size=options.world_size)
        checks = [recipe_check(run, options.world_size), memory_line(run, options.world_size, gpu_bytes())]
        checks += begin(run) if options.files else node_checks(run) if options.node else []
        if not all(check.ok for check in checks):
            raise PreflightError(checks)
    except (CheckoutError, RecipeError, PreflightError) as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(2) from None
    if options.print:
        print(to_yaml(run), end="")
    elif os.environ.get("SLURM_NODEID", "0") == "0":
        print("\n".join(["preflight", *(check.line for check in checks)]), flush=True)


def recipe_check(run: RunConfig, world_size: int) -> Check:
    """The recipe on so many processes. Raises RecipeError; `compose` has done so where it was told of the world."""
    parallel = run.parallel
    axes = f"data {parallel.data_size(world_size)} x tensor {parallel.tensor} x pipeline {parallel.pipeline}"
    found = f"{run.model.name}, {run.stage.name}: {axes}, {run.data.rows_per_step} rows a step"
    return Check(name="recipe", found=found)


def memory_line(run: RunConfig, world_size: int, gpu: int | None) -> Check:
    """What a rank holds against the room of a GPU of `gpu` bytes; None where there is none, and then nothing is built.

    A run is refused for what every rank of the pipeline holds in any case: weights, gradients, optimizer state. What it
    may need with rows that fill the recipe's budgets is told (launch/planning/), as rows may be shorter than that.
    """
    if gpu is None:
        return Check(name="memory", found="not looked at, as this host has no GPU")
    from launch.planning.rows import imagined_step  # and torch with megatron-core, which takes seconds
    from launch.planning.speed import room_of
    from launch.planning.stage import Rows, fullest_bytes, sure_bytes
    from launch.planning.weights import Weights

    weights = Weights(run, run.parallel.tensor)
    rows = Rows(steps=(imagined_step(run),), said="imagined")
    sure, full = (reckon(run, rows, world_size, weights) for reckon in (sure_bytes, fullest_bytes))
    room = max(room_of(gpu), 0.0)
    found = (
        f"{sure / 1e9:.3g} GB of weights, gradients and optimizer state on the fullest rank, and {full / 1e9:.3g} with "
        f"rows that fill their budgets; {room / 1e9:.3g} are to be had of {gpu / 1e9:.3g}, less what CUDA, NCCL and "
        "the allocator take"
    )
    if sure > room:
        cure = "raise parallel.tensor or parallel.pipeline, or start more processes, over which the optimizer is shared"
        return Check(name="memory", found=f"{found}; {cure}", ok=False)
    if full > room:
        short = "triptych plan says that it does not fit, and it does only while rows stay shorter"
        return Check(name="memory", found=f"{found}; {short}", doubtful=True)
    return Check(name="memory", found=found)


def gpu_bytes() -> int | None:
    """Memory of this host's smallest GPU, None where there is none. By nvidia-smi, as CUDA itself would take a GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        return min(int(mebibytes) for mebibytes in told) << 20 if told else None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def begin(run: RunConfig) -> list[Check]:
    """File checks of a run that is about to start: what the start before has said of its end holds no more."""
    from train.ending import clear_ending, write_ending
    from train.lock import LEASE_SECONDS, check_lock

    if unwritten := folder_checks(run):
        return [*unwritten, *wandb_checks(run), *(check for check in file_checks(run) if not check.ok)]
    try:
        check_lock(run.run_dir, LEASE_SECONDS)
    except (ValueError, OSError) as fault:
        return [Check(name="run folder", found=str(fault), ok=False)]  # and the verdict is left to who trains there
    clear_ending(run.run_dir)  # a start that is refused must not leave the verdict of the one before
    checks = [*file_checks(run), *wandb_checks(run)]
    if faults := [check.found for check in checks if not check.ok]:
        with suppress(OSError):
            if Path(run.run_dir).exists():
                write_ending(run.run_dir, "failed", "; ".join(faults), 0, refused=True)
    return checks


def node_checks(run: RunConfig) -> list[Check]:
    """What a start takes from this node, whatever its data are."""
    return [*folder_checks(run), *wandb_checks(run)]


def folder_checks(run: RunConfig) -> list[Check]:
    """A row if this node cannot write the run's folder. Whether it is one for all nodes the ranks see together."""
    try:
        check_writable(ROOT / run.run_dir)
    except ValueError as fault:
        return [Check(name="run folder", found=str(fault), ok=False)]
    return []


def file_checks(run: RunConfig) -> list[Check]:
    """Store, index, tokenizer, first weights and run folder, as this node sees them."""
    from train.ready import file_faults  # takes a second to import, which a faulty recipe need not wait for

    faults = [Check(name="files", found=fault, ok=False) for fault in file_faults(run)]
    names = ", ".join(source.name for source in run.data.sources)
    return faults or [
        Check(name="files", found=f"tokenizer, first weights, and shards that are those indexed: {names}")
    ]


def wandb_checks(run: RunConfig) -> list[Check]:
    """Whether wandb could take what it is to get. A run does not end by it, so only what is surely lost fails."""
    if run.log.wandb == "disabled":
        return []
    if importlib.util.find_spec("wandb") is None:
        cure = (
            f"log.wandb={run.log.wandb}, but the package is not installed: pip install wandb, or set log.wandb=disabled"
        )
        return [Check(name="wandb", found=cure, ok=False)]
    if run.log.wandb == "offline":
        return [Check(name="wandb", found=f"offline, below {run.run_dir}; send it by `wandb sync`")]
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    if where := _wandb_key(host):
        return [Check(name="wandb", found=f"online at {host}, with the key of {where}")]
    cure = "without one wandb is given up and metrics.jsonl goes on: `wandb login`, or set log.wandb=offline"
    return [Check(name="wandb", found=f"no key for {host} in WANDB_API_KEY or ~/.netrc; {cure}", doubtful=True)]


def _wandb_key(host: str) -> str:
    """Where wandb will find one; empty if nowhere. The key itself is nobody's to read."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(name):
            return name
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return str(path) if host in netrc.netrc(path).hosts else ""
    except (OSError, netrc.NetrcParseError):
        return ""


def refusals(run: RunConfig, files: bool) -> list[Check]:
    """What is not in order before a job waits in a queue; nothing is written. Its GPUs are not known here."""
    from train.lock import check_lock

    checks = node_checks(run)
    try:
        check_lock(run.run_dir)
    except (ValueError, OSError) as fault:
        checks.append(Check(name="run folder", found=str(fault), ok=False))
    return [check for check in [*checks, *(file_checks(run) if files else [])] if not check.ok]


if __name__ == "__main__":
    main()
