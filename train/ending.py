"""How a run ended, in a file that launch scripts read: RUN/verdict.json.

    {"verdict": "again", "step": 812, "commit": "step_00000812.9ac41e01", "reason": "ended as SIGUSR1 ...",
     "when": "2026-11-22T03:00:00Z"}

torchrun turns whatever its processes leave with into 1, so an exit code cannot tell a run that is to be started again
from one that has failed.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from parallel.verdict import How
from train.checkpoint.commits import attempts, now
from train.lines import record_of
from train.lock import is_of_another_start

VERDICT = "verdict.json"
STALLS = "stalls.jsonl"
"""In RUN/faults: a line for each time that no progress ended a start of the run, with the newest commit then."""
Word = Literal["again", "done", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What verdict.json says."""

    verdict: Word
    """Asked to end before the stage was over, or it did not go on any more, so start it again; the stage or
    `stop_after_steps` reached; a fault."""
    step: int
    """Steps of the stage that were finished. The commit may be of an earlier one. A start that failed before its first
    step, be it of a run that was to go on, has that of the commit."""
    commit: str | None
    """Folder of the newest sealed checkpoint, None if there is none."""
    reason: str
    when: str
    """UTC."""
    refused: bool = False
    """It failed by what the user has to mend first: started again, it would end the same."""
    stuck: int = 0
    """0, or a rank did not go on and nothing failed that is known of: how often that has now been so after this commit.
    At the first time the run is worth another start in place, later on no more."""


def write_ending(
    run_dir: str | Path, verdict: Word, reason: str, step: int, refused: bool = False, stuck: int = 0
) -> None:
    """Write the file, by rename; raises OSError. To be called by one process, when there is nothing more to save."""
    folder = Path(run_dir)
    newest = next((attempt for attempt in attempts(folder) if attempt.sealed), None)
    commit, at_least = (newest.path.name, newest.step) if newest is not None else (None, 0)
    ending = Ending(
        verdict=verdict, step=step or at_least, commit=commit, reason=reason, when=now(), refused=refused, stuck=stuck
    )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{VERDICT}.{os.getpid()}"
    with partial.open("w") as file:
        file.write(json.dumps(asdict(ending), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / VERDICT)


def conclude(run_dir: str | Path, how: How, reason: str, step: int) -> None:
    """For the watch, which ends a job that did not end by itself. Where nothing can be written there is no verdict, and
    that reads as failed. What this start has said once all was saved stands, whatever fails after it, and that it was
    stuck, whatever torchrun then asks of its ranks; so does the word of another start that trains there, by which this
    one was refused."""
    said = read_ending(run_dir)
    if said is not None and (said.stuck or (said.verdict != "failed" and how != "asked")):
        return
    with suppress(OSError):
        if is_of_another_start(run_dir):
            return
        if how != "stuck":
            write_ending(run_dir, "again" if how == "asked" else "failed", reason, step)
            return
        newest = next((attempt.path.name for attempt in attempts(run_dir) if attempt.sealed), None)
        count = _times_stuck(Path(run_dir), newest)
        again = newest is not None and count == 1
        if count > 1:
            reason += "; the run has no checkpoint since it was stuck last, so it is left alone"
        write_ending(run_dir, "again" if again else "failed", reason, step, stuck=count)


def _times_stuck(run_dir: Path, newest: str | None) -> int:
    """How often a run has been stuck after this commit, now included, which is noted. What hangs for a sample, and not
    for a host, would otherwise be started again and again. Raises OSError."""
    path = run_dir / "faults" / STALLS
    told = path.read_text(errors="replace") if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        # What a lost host has left of a line must not take this one along.
        file.write("\n" * (told != "" and not told.endswith("\n")))
        file.write(json.dumps({"commit": newest, "when": now()}) + "\n")
    lines = [record_of(line) for line in told.splitlines()]
    return 1 + sum(line is not None and line.get("commit") == newest for line in lines)


def clear_ending(run_dir: str | Path) -> None:
    """A run begins: what is said of an earlier start of it holds no more. Raises OSError."""
    (Path(run_dir) / VERDICT).unlink(missing_ok=True)


def read_ending(run_dir: str | Path) -> Ending | None:
    """What the file says; None if there is none that can be read."""
    try:
        told = json.loads((Path(run_dir) / VERDICT).read_text())
        ending = Ending(**told)
    except (OSError, ValueError, TypeError):
        return None
    return ending if ending.verdict in get_args(Word) else None
