"""Arguments of `triptych slurm` and `triptych preflight`."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from launch.checkout import ROOT
from launch.commands.data import at_least_one


def add_slurm(parser: argparse.ArgumentParser) -> None:
    """Of `triptych slurm`."""
    _add_recipe(parser)
    parser.add_argument("--nodes", type=at_least_one, required=True, help="of the job")
    parser.add_argument("--gpus-per-node", type=at_least_one, default=8, help="and processes; default: 8")
    parser.add_argument(
        "--time", help="limit, as sbatch takes it: 12:00:00, UNLIMITED; the run is warned before, and requeued"
    )
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("--account", help="that pays")
    parser.add_argument("--after", type=at_least_one, metavar="JOB", help="start when this job has ended well")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="=OPTION", help="another option of sbatch: --sbatch=--qos=low"
    )
    parser.add_argument("--preflight", action="store_true", help="a job that looks at all, and trains nothing")
    parser.add_argument("--print", action="store_true", help="show what would run, and submit nothing")
    parser.set_defaults(command=_slurm)


def add_preflight(parser: argparse.ArgumentParser) -> None:
    """Of `triptych preflight`."""
    _add_recipe(parser)
    parser.add_argument("--print", action="store_true", help="show the command, and start nothing")
    parser.set_defaults(command=_preflight)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-name", metavar="RECIPE", required=True)
    parser.add_argument("--config-path", type=Path, metavar="DIR", help="folder of the recipe, instead of recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")


def _slurm(options: argparse.Namespace) -> int:
    from launch.jobs.slurm import Job, plan_job, submit

    job = Job(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        time=options.time,
        partition=options.partition,
        account=options.account,
        after=options.after,
        preflight=options.preflight,
        more=tuple(options.sbatch),
    )
    submission = plan_job(options.config_name, options.overrides, job, options.config_path)
    for line in submission.lines if options.print else submit(submission):
        print(line)
    return 0


def _preflight(options: argparse.Namespace) -> int:
    """Become the launch script, on as many processes as it counts GPUs or NPROC_PER_NODE says."""
    where = ["--config-path", str(options.config_path.resolve())] if options.config_path is not None else []
    arguments = ["--preflight", *where, "--config-name", options.config_name, *options.overrides]
    if not options.print:
        script = str(ROOT / "launch" / "torchrun.sh")
        os.execve(script, [script, *arguments], os.environ | {"PYTHON": sys.executable})
    print(shlex.join(["launch/torchrun.sh", *arguments]))
    return 0
