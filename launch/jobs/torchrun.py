"""`python -m launch.jobs.torchrun [--print] [--restarts=N] [TORCHRUN OPTIONS] -m train --config-name RECIPE [key=value
...]`

torchrun for a run. By itself it dies of SIGUSR1 and kills its processes 30 s after it has handed on a signal; here it
is told what the recipe needs, each rank gets a log of its own, and it leaves with the run's verdict: 0 done, 75 again,
2 refused, else 1.

A run that is ended by a fault that the user cannot mend (a lost process, a rank that hangs, a link that broke) is
started again from its newest commit, `--restarts` times in a row that bring no new one; for a rank that hangs, once
after each commit. torchrun's own --max-restarts would start what was asked to end or has to be mended as well, and with
`resume=false`.
"""

import argparse
import dataclasses
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.checkout import ROOT
from launch.jobs.settings import settings, shown
from launch.pages.report import report_at_end
from parallel.verdict import AGAIN_CODE, FAULT_CODE, MENDABLE_CODE
from train.checkpoint.commits import attempts
from train.config import CheckpointConfig, RunConfig
from train.ending import Ending, clear_ending, read_ending, write_ending
from train.lock import LEASE_SECONDS, check_lock
from train.resolve import compose

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""torchrun's own, and the one by which SLURM warns."""
_NUMBERS = {getattr(signal, name) for name in SIGNALS.split(",")}
_SPARE_SECONDS = 30


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Which start of the run this is, of those that one call of launch/torchrun.sh makes."""

    number: int = 0
    idle: int = 0
    """Starts in a row before this one that have brought no new commit."""
    commit: str = ""
    """The newest before it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why torchrun ended, where it did not end well. Without codes, and not alone: it was asked to, or met nobody."""

    text: str
    codes: tuple[int, ...] = ()
    """Of this node's ranks that ended first."""
    alone: bool = False
    """Another node has left first, with the store of them all. torchrun has then asked its own ranks to end, so that
    their verdict is no request from outside."""


def stopping_options(checkpoint: CheckpointConfig) -> list[str]:
    """Options of torchrun for a run that ends in order. Whoever starts torchrun for a run takes them.

    The time until torchrun kills is longer than a run can take: schedulers have their own, and what hangs ends by
    parallel.timeout_seconds.
    """
    seconds = math.ceil(checkpoint.grace_seconds + checkpoint.last_save_seconds) + _SPARE_SECONDS
    return [f"--signals-to-handle={SIGNALS}", f"--shutdown-timeout={seconds}"]


def recipe_of(arguments: Sequence[str]) -> RunConfig:
    """The run that `python -m train ARGUMENTS` is. Raises ValueError."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", required=True)
    parser.add_argument("--config-path", type=Path)
    options, overrides = parser.parse_known_args(list(arguments))
    return compose(options.config_name, overrides, folder=options.config_path)


def newest_commit(run_dir: str | Path) -> str:
    """Name of the newest sealed commit of a run; empty if there is none."""
    return next((attempt.path.name for attempt in attempts(run_dir) if attempt.sealed), "")


def resumed(arguments: Sequence[str], run_dir: str | Path, since: str) -> list[str]:
    """Arguments of a run for its next start: from its newest commit, or as they were while there is none.

    Args:
        since: the newest commit when the run was first started by these arguments.
    """
    commit = newest_commit(run_dir)
    if not commit:
        return list(arguments)
    # A new segment of the plan begins once, and its first commit has it. Whatever changes after that is no wish.
    dropped = ("resume=",) if commit == since else ("resume=", "new_segment=")
    return [*(word for word in arguments if not word.startswith(dropped)), "resume=true"]


def main(arguments: Sequence[str]) -> int:
    """Run torchrun in this process; returns the exit code, or becomes the next start of the run."""
    own, arguments = _own(arguments)
    at = arguments.index("-m") + 2
    options, module, words = arguments[: at - 2], arguments[at - 1], arguments[at:]
    try:
        run = recipe_of(words)
    except ValueError as refused:
        print(refused, file=sys.stderr)
        return MENDABLE_CODE
    told = [*_understood(stopping_options(run.checkpoint)), *_patience(run), *options]
    command = [*told, "--no-python", *_command(run, module), *words]
    if own.show:
        print("\n".join(_lines(run, command, own.restarts)))
        return 0
    if own.start.number == 0 and module == "train":
        try:
            check_lock(run.run_dir, LEASE_SECONDS)  # the verdict of who trains there is not ours to forget
            clear_ending(run.run_dir)  # before any node's processes start: what they write is of this start
        except (ValueError, OSError) as refused:
            print(refused, file=sys.stderr)
            return MENDABLE_CODE
        own = dataclasses.replace(own, start=Start(commit=newest_commit(run.run_dir)))
    fault = _torchrun(command, run)
    if module == "train":
        report_at_end(run.run_dir)
    if fault is None:
        return 0
    ending = read_ending(run.run_dir) if module == "train" else None
    if ending is not None and ending.verdict == "done" and not fault.codes:  # it was ended while it waited for the rest
        return 0
    again = ending is not None and ending.verdict == "again" and not fault.alone
    stuck = ending.stuck if ending is not None else 0
    if again and not stuck:  # each rank has said why it left
        return AGAIN_CODE
    if fault.codes and set(fault.codes) == {MENDABLE_CODE}:  # torchrun's own words would bury what the ranks have said
        print(f"torchrun: something is to be mended first, as said above and in {run.run_dir}/logs", file=sys.stderr)
        if ending is not None:
            _refuse(run, ending)
        return MENDABLE_CODE
    print(fault.text, file=sys.stderr)
    if module == "train" and (fault.codes or fault.alone) and stuck <= 1:  # once for each commit: train/ending.py
        _start_again(run, own, options, words)
    return AGAIN_CODE if again else FAULT_CODE


def _refuse(run: RunConfig, ending: Ending) -> None:
    """Whoever reads the verdict learns that another start would end the same. Every node says so before it leaves."""
    write_ending(run.run_dir, ending.verdict, ending.reason, ending.step, refused=True)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Own:
    restarts: int
    start: Start
    show: bool


def _own(arguments: Sequence[str]) -> tuple[_Own, list[str]]:
    """Options of this module, and what is left for torchrun and the run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--print", action="store_true")
    for field in dataclasses.fields(Start):
        parser.add_argument(f"--start-{field.name}", type=type(field.default), default=field.default)
    at = list(arguments).index("-m")
    told, rest = parser.parse_known_args(list(arguments[:at]))
    start = Start(**{field.name: getattr(told, f"start_{field.name}") for field in dataclasses.fields(Start)})
    return _Own(restarts=told.restarts, start=start, show=told.print), [*rest, *arguments[at:]]


def _command(run: RunConfig, module: str) -> list[str]:
    """Of a rank. PYTHON_EXEC is torchrun's own variable for the interpreter."""
    python = os.environ.get("PYTHON_EXEC", sys.executable)
    return [str(ROOT / "launch" / "rank.sh"), f"{run.run_dir}/logs", python, "-u", "-m", module]


def _lines(run: RunConfig, command: Sequence[str], restarts: int) -> list[str]:
    """What would run, for people."""
    again = f", and again up to {restarts} times in a row without a new commit" if restarts else ""
    return [
        f"started from the root of the checkout{again}:",
        f"  torchrun {shlex.join(command)}",
        *shown(run.parallel),
        "logs:",
        f"  {run.run_dir}/logs/rank_00000.log ...  everything a rank says",
    ]


def _patience(run: RunConfig) -> list[str]:
    """Nodes wait for each other as long as ranks do, and no longer."""
    seconds = math.ceil(run.parallel.timeout_seconds)
    return [f"--rdzv-conf=join_timeout={seconds},read_timeout={seconds}"]


def _start_again(run: RunConfig, own: _Own, options: Sequence[str], words: Sequence[str]) -> None:
    """Become the next start, in a process that has nothing of this one but its number, or return if it is not worth
    it."""
    commit = newest_commit(run.run_dir)
    idle = own.start.idle + 1 if commit == own.start.commit else 0
    if own.restarts == 0:
        return
    if idle > own.restarts:
        print(f"torchrun: not started again, as {idle} starts in a row have brought no new commit", file=sys.stderr)
        return
    following = Start(number=own.start.number + 1, idle=idle, commit=commit)
    print(f"torchrun: start {following.number + 1}, from {commit or 'the beginning'}", file=sys.stderr, flush=True)
    told = [f"--start-{name}={value}" for name, value in dataclasses.asdict(following).items()]
    arguments = [f"--restarts={own.restarts}", *told, *map(_next_port, options), "-m", "train"]
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)  # one that comes now is heard by what this process becomes
    words = resumed(words, run.run_dir, own.start.commit)
    with suppress(OSError):
        clear_ending(
            run.run_dir
        )  # another node that finds none decides the same, and none can come before all are here
    os.execv(sys.executable, [sys.executable, "-m", "launch.jobs.torchrun", *arguments, *words])


def _next_port(option: str) -> str:
    """Nodes do not end at once: who is first must not meet the others' last store."""
    name, _, address = option.partition("=")
    if name != "--rdzv-endpoint":
        return option
    host, _, port = address.rpartition(":")
    return f"{name}={host}:{int(port) + 1}"


def _leave_at_signals() -> None:
    """Until torchrun takes over, which imports for seconds, a signal ends this process as one that was asked to."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(AGAIN_CODE)

    for number in _NUMBERS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


def _torchrun(arguments: list[str], run: RunConfig) -> Fault | None:
    """Why it failed, if it did."""
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousError

    for setting in settings(run.parallel):
        os.environ.setdefault(setting.name, setting.value)
    try:
        torchrun.main(arguments)
    except SignalException as end:
        return Fault(text=f"torchrun: ended as {end.sigval.name} asked")
    except ChildFailedError as fault:
        return Fault(text=str(fault), codes=tuple(each.exitcode for each in fault.failures.values()))
    except (RendezvousConnectionError, DistError) as fault:
        return Fault(text=f"torchrun: the node that holds the job's store has gone: {_first_line(fault)}", alone=True)
    except RendezvousError as fault:
        seconds = f"parallel.timeout_seconds={run.parallel.timeout_seconds:g}"
        cure = "start each node with the same NNODES, MASTER_ADDR and MASTER_PORT, and see that it reaches that address"
        return Fault(text=f"torchrun: the nodes did not meet within {seconds}: {_first_line(fault)}; {cure}")
    return None


def _first_line(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}".splitlines()[0]


def _understood(options: list[str]) -> list[str]:
    """What torchrun of this torch takes; 2.11 cannot be told by an option how long to wait before it kills."""
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.run import get_args_parser

    known = get_args_parser()._option_string_actions
    for option in options:
        name, _, value = option.partition("=")
        if name == "--shutdown-timeout" and name not in known:
            PContext.close.__defaults__ = (None, int(value))  # (death_sig, timeout)
    return [option for option in options if option.partition("=")[0] in known]


if __name__ == "__main__":
    _leave_at_signals()
    raise SystemExit(main(sys.argv[1:]))
