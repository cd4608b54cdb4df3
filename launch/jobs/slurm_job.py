"""`python -m launch.jobs.slurm_job begin|end --config-name RECIPE [--config-path DIR] [key=value ...]`

For launch/train.sbatch. `begin` forgets the last start's verdict and prints the arguments of this one, one on a line:
those of a job that was put back in the queue go on from the newest commit. `end` prints what is to become of the job:
done, again (it was asked to end), retry (it failed by no fault of the user's), refused (the user has something to mend)
or failed.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.jobs.torchrun import newest_commit, recipe_of, resumed
from train.checkpoint.commits import now
from train.ending import clear_ending, read_ending
from train.folder import check_writable
from train.lines import record_of
from train.lock import LEASE_SECONDS, check_lock

STARTS = "jobs.jsonl"
"""In the run's folder: a line for each start of a job from the queue, with the newest commit that it found. Starts of
the run itself, those in place too, are in starts.jsonl."""
IDLE_JOBS = 3
"""A job that has failed is put back so often in a row without a new commit. In each, launch/torchrun.sh has tried as
often as RESTARTS says."""


def main(arguments: Sequence[str]) -> None:
    """Exit 2 with the reason if there is no such recipe, its folder cannot be written, or a run trains there."""
    action, *words = arguments
    try:
        run_dir = recipe_of(words).run_dir
        print("\n".join(begin(words, run_dir)) if action == "begin" else end(run_dir))
    except (ValueError, OSError) as fault:
        print(fault, file=sys.stderr)
        raise SystemExit(2) from None


def begin(words: Sequence[str], run_dir: str) -> list[str]:
    """Arguments of this start. Raises ValueError if the folder cannot be written, or while a run trains there: its
    verdict is not ours."""
    check_writable(run_dir)
    check_lock(run_dir, LEASE_SECONDS)
    clear_ending(run_dir)
    start = {"job": os.environ.get("SLURM_JOB_ID", ""), "restarts": _restarts(), "commit": newest_commit(run_dir)}
    path = Path(run_dir) / STARTS
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as file:
        # What a lost host has left of a line must not take this one along.
        file.write(("" if whole else "\n") + json.dumps({**start, "when": now()}) + "\n")
    starts, damaged = _starts(run_dir)
    if damaged:
        print(f"{path}: {damaged} damaged lines count for nothing", file=sys.stderr)
    return resumed(words, run_dir, starts[0]["commit"]) if _restarts() else list(words)


def end(run_dir: str) -> str:
    """What is to become of the job."""
    ending = read_ending(run_dir)
    if ending is not None and ending.verdict != "failed":
        return ending.verdict
    if ending is not None and ending.refused:
        return "refused"
    return "retry" if _idle(run_dir) <= IDLE_JOBS else "failed"


def _idle(run_dir: str) -> int:
    """Starts of this job, up to the present one, that found the commit that is still the newest."""
    newest, count = newest_commit(run_dir), 0
    for start in reversed(_starts(run_dir)[0]):
        if start["commit"] != newest:
            break
        count += 1
    return count


def _starts(run_dir: str) -> tuple[list[dict[str, Any]], int]:
    """Of this job, the first one first; and how many lines cannot be read."""
    lines = (Path(run_dir) / STARTS).read_text(errors="replace").splitlines()
    told = [start for line in lines if (start := record_of(line)) is not None and {"job", "commit"} <= start.keys()]
    job = os.environ.get("SLURM_JOB_ID", "")
    return [start for start in told if start["job"] == job], len(lines) - len(told)


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


if __name__ == "__main__":
    main(sys.argv[1:])
