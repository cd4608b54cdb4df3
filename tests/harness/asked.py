"""Real runs that are asked to end: a signal in the middle of a step, to torchrun, to one rank, or to all at once."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.harness.faulty import Fault, lurk
from tests.harness.lives import Nursery
from tests.harness.runs import IMPATIENT_SECONDS, Ended, Recipe, _marked, _start, _wait_for
from train.config import RunConfig
from train.ending import Ending, read_ending

AGAIN = 75
"""What a run leaves with that was asked to end. Spelt out: it is part of what users rely on."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who gets which signal."""

    signal: signal.Signals
    to: str
    """torchrun, all (torchrun and its ranks, as Ctrl-C under srun), or the number of a rank."""
    times: int = 1
    """Sent so often, IMPATIENT_SECONDS apart."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A run after it was asked to end."""

    output: str
    code: int
    seconds: float
    """From the first signal to the end of the last process."""
    left_over: tuple[int, ...]
    """Processes that had to be ended from outside."""
    ending: Ending | None


def in_step(number: int, microbatches: int, rank: int, kind: str = "pause 3", where: str = "forward") -> Fault:
    """`rank` waits in the first microbatch of the `number`-th step of this start; `kind` as in `Fault`."""
    return Fault(kind=kind, where=where, rank=rank, microbatch=(number - 1) * microbatches, microbatches=0)


def ask(
    recipe: Recipe,
    run_dir: Path,
    request: Request,
    fault: Fault,
    *overrides: str,
    resumed: bool = False,
    plant: str | None = None,
    timeout: float = 150.0,
) -> Asked:
    """Start or go on with a run, and ask it to end once it has come to `fault`; AssertionError if it never does."""
    mark = uuid.uuid4().hex
    moment = recipe.folder / f"moment_{mark}"
    command = ["launch/torchrun.sh", "--config-path", str(recipe.folder), "--config-name", recipe.name]
    command += [f"run_dir={run_dir}"]
    if resumed:
        command = [sys.executable, "-m", "launch.cli", "resume", str(run_dir)]
    interpreter = f"-m tests.harness.faulty '{replace(fault, moment=str(moment)).to_json()}' {plant or '-'}"
    process = _start([*command, *overrides], recipe, interpreter, TRIPTYCH_TEST_RUN=mark)
    try:
        _wait_for(moment, process, timeout)
        started = time.monotonic()
        for number in range(request.times if moment.exists() else 0):
            time.sleep(IMPATIENT_SECONDS if number else 0.0)
            for pid in _receivers(request, process.pid):
                os.kill(pid, request.signal)
        output, _ = process.communicate(timeout=timeout)
        seconds = time.monotonic() - started
        left_over = _still_there(mark)
    except subprocess.TimeoutExpired:
        left_over, seconds = _marked(mark), timeout
    finally:
        for pid in _marked(mark):
            os.kill(pid, signal.SIGKILL)
    if seconds == timeout:
        output, _ = process.communicate()
    assert moment.exists(), f"the step never came: {output[-4000:]}"
    return Asked(
        output=output, code=process.returncode, seconds=seconds, left_over=left_over, ending=read_ending(run_dir)
    )


def ask_life(nursery: Nursery, run: RunConfig, processes: int, request: Request, fault: Fault) -> Asked:
    """The same of a start without torchrun, forked by the nursery: `request` goes to one rank.

    AssertionError unless all processes leave with one code, before they are killed.
    """
    mark, sent = uuid.uuid4().hex, []
    notes = Path(f"{run.run_dir}.{mark}")
    notes.mkdir(parents=True)
    moment = notes / "moment"

    def send() -> bool:
        if moment.exists() and not sent:
            sent.append(time.monotonic())
            os.kill(int((notes / request.to).read_text()), request.signal)
        return False

    given = (replace(fault, moment=str(moment)), str(notes), mark)
    life = nursery.live(run, processes, before=_lie_in_wait, given=given, until=send, others_get=signal.SIGTERM)
    seconds, left_over = time.monotonic() - sum(sent), _still_there(mark)
    for pid in left_over:
        os.kill(pid, signal.SIGKILL)
    assert sent, f"the step never came: {life.said[-4000:]}"
    (code,) = set(life.codes)
    assert code is not None, life.said[-4000:]
    return Asked(output=life.said, code=code, seconds=seconds, left_over=left_over, ending=read_ending(run.run_dir))


def fail_life(nursery: Nursery, run: RunConfig, processes: int, fault: Fault, plant: str | None = None) -> Ended:
    """As `fail` of tests/harness/runs.py, of a start without torchrun; its code is that of the first rank."""
    mark = uuid.uuid4().hex
    notes = Path(f"{run.run_dir}.{mark}")
    notes.mkdir(parents=True)
    moment = notes / "moment"
    given = (replace(fault, moment=str(moment)), str(notes), mark)
    life = nursery.live(run, processes, before=_lie_in_wait, given=given, plant=plant, others_get=signal.SIGTERM)
    ended, left_over = time.time(), _still_there(mark)
    for pid in left_over:
        os.kill(pid, signal.SIGKILL)
    assert moment.exists(), f"the fault never came: {life.said[-4000:]}"
    assert life.codes[0] is not None, life.said[-4000:]
    return Ended(output=life.said, code=life.codes[0], seconds=ended - float(moment.read_text()), left_over=left_over)


def _lie_in_wait(rank: int, fault: Fault, notes: str, mark: str) -> None:
    """Say which process this is, mark those that it starts, and have the fault come."""
    os.environ["TRIPTYCH_TEST_RUN"] = mark
    (Path(notes) / str(rank)).write_text(str(os.getpid()))
    if fault.rank is None or fault.rank == rank:
        lurk(fault)


def _still_there(mark: str, seconds: float = 30.0) -> tuple[int, ...]:
    """What does not end by itself soon. Data workers look every half second whether their trainer lives."""
    deadline = time.monotonic() + seconds
    while (found := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _receivers(request: Request, torchrun: int) -> Sequence[int]:
    ranks = ranks_of(torchrun)
    if request.to == "torchrun":
        return [torchrun]
    return [torchrun, *ranks.values()] if request.to == "all" else [ranks[int(request.to)]]


def ranks_of(torchrun: int) -> dict[int, int]:
    """Process of each rank that this torchrun has started."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent != torchrun:
                continue
            environment = (path.parent / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError, ValueError):
            continue
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(path.parent.name)
    return found


def steps_recorded(run_dir: Path) -> list[int]:
    """Of metrics.jsonl."""
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
