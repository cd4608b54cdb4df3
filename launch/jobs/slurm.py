"""`triptych slurm`: a run as a SLURM job. launch/train.sbatch is the job; here are its options, from the recipe."""

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.checkout import ROOT
from launch.jobs.preflight import refusals
from launch.jobs.settings import shown
from launch.jobs.torchrun import stopping_options
from train.checks import PreflightError
from train.config import RunConfig
from train.resolve import compose

_LEAST_LEAD = 120
_SPARE_SECONDS = 60
"""SLURM warns up to a minute early or late, and torchrun hands the signal on."""
_NO_LIMIT = ("UNLIMITED", "INFINITE")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is asked of SLURM."""

    nodes: int
    gpus_per_node: int
    time: str | None = None
    """As sbatch takes it; None leaves it to the partition."""
    partition: str | None = None
    account: str | None = None
    after: int | None = None
    """A job that has to end well first, as the stage before: what is to be there by then is looked at by then."""
    preflight: bool = False
    """Look at recipe, data, nodes and links, and train nothing."""
    more: tuple[str, ...] = ()
    """Further options of sbatch, as they are."""

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job that can be sent."""

    run: RunConfig
    job: Job
    command: list[str]
    """From the root of the checkout."""

    @property
    def lines(self) -> list[str]:
        """What would run, for people."""
        job, run = self.job, self.run
        check = ["launch/torchrun.sh", *self.command[self.command.index("launch/train.sbatch") + 1 :]]
        return [
            "submitted from the root of the checkout:",
            f"  {shlex.join(self.command)}",
            f"on each of the {job.nodes} nodes, by launch/train.sbatch:",
            f"  NNODES={job.nodes} NPROC_PER_NODE={job.gpus_per_node} RESTARTS=3 MASTER_ADDR=(the first node) "
            f"{shlex.join(check)}",
            "with these options of torchrun, from the recipe:",
            f"  {shlex.join(stopping_options(run.checkpoint))}",
            *shown(run.parallel),
            "logs:",
            f"  {run.run_dir}/logs/job_JOB.log         the job and each node's first rank",
            f"  {run.run_dir}/logs/rank_00000.log ...  everything a rank says",
        ]


def plan_job(name: str, overrides: Sequence[str], job: Job, folder: Path | None = None) -> Submission:
    """Options and arguments of sbatch. Raises RecipeError or ValueError where the job would wait in order to fail."""
    run = compose(name, list(overrides), folder=folder, world_size=job.world_size)
    lead = lead_seconds(run)
    limit = seconds_of(job.time) if job.time is not None else None
    if limit is not None and limit <= lead:
        raise ValueError(
            f"--time {job.time} is {limit} s, but a run is warned {lead} s before it ends (checkpoint.grace_seconds is "
            f"{run.checkpoint.grace_seconds:g}); give more time or lower checkpoint.grace_seconds"
        )
    options = {
        "--job-name": f"preflight_{name}" if job.preflight else name,
        "--nodes": job.nodes,
        "--gpus-per-node": job.gpus_per_node,
        "--time": job.time,
        "--partition": job.partition,
        "--account": job.account,
        "--dependency": f"afterok:{job.after}" if job.after is not None else None,
        "--signal": f"USR1@{lead}",  # without a limit too: the job may be given one while it runs
        "--output": f"{run.run_dir}/logs/job_%j.log",
        "--export": f"ALL,PYTHON={sys.executable}",
    }
    told = [f"{key}={value}" for key, value in options.items() if value is not None]
    where = ["--config-path", str(folder.resolve())] if folder is not None else []
    arguments = [*(["--preflight"] if job.preflight else []), *where, "--config-name", name, *overrides]
    command = ["sbatch", "--parsable", *told, *job.more, "launch/train.sbatch", *arguments]
    return Submission(run=run, job=job, command=command)


def lead_seconds(run: RunConfig) -> int:
    """How long before the time limit the run is asked to end: it has checkpoint.grace_seconds to do so."""
    return max(_LEAST_LEAD, math.ceil(run.checkpoint.grace_seconds) + _SPARE_SECONDS)


def seconds_of(time: str) -> int | None:
    """Of MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES[:SECONDS]]; None for no limit, which is 0
    or UNLIMITED to sbatch. Raises ValueError."""
    if time.upper() in _NO_LIMIT:
        return None
    found = _TIME.fullmatch(time)
    if found is None:
        raise ValueError(f"--time {time} is none of 90, 90:00, 12:00:00, 2-00, 2-12:00:00, and UNLIMITED")
    return _counted(found) or None


def _counted(found: re.Match[str]) -> int:
    days, *parts = (int(part) if part is not None else None for part in found.groups())
    given = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*given, 0, 0)[:3]
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(given) == 3:
        return (given[0] * 60 + given[1]) * 60 + given[2]
    return given[0] * 60 + (given[1] if len(given) == 2 else 0)


def submit(submission: Submission) -> Iterator[str]:
    """Send the job; what people want to know of it.

    Raises PreflightError if the run could not start, ValueError if sbatch is not there or refuses."""
    run, job = submission.run, submission.job
    if faults := refusals(run, files=job.after is None):
        raise PreflightError(faults)
    (ROOT / run.run_dir / "logs").mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(submission.command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    except FileNotFoundError:
        raise ValueError(
            "there is no sbatch here; log in to a node that submits, or use --print to see the job"
        ) from None
    if done.returncode:
        raise ValueError(f"{shlex.join(submission.command)}\nwas refused: {done.stderr.strip()}")
    number = done.stdout.strip().partition(";")[0]
    what = f"{'preflight of ' if job.preflight else ''}{run.run_dir}"
    yield f"job {number}: {what} on {job.nodes} x {job.gpus_per_node} GPUs"
    yield f"  tail -F {run.run_dir}/logs/job_{number}.log"
    yield f"  squeue -j {number}          scancel {number}: it saves, and ends for good"
