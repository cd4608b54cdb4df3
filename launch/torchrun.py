"""`python -m launch.torchrun [TORCHRUN OPTIONS] -m train --config-name RECIPE [key=value ...]`: torchrun for a run.

torchrun by itself dies of SIGUSR1 and kills its processes 30 s after it has handed on a signal. Here it is told what
the recipe needs, and it leaves with the run's verdict: 0 done, 75 again, else what torchrun would.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from parallel.verdict import AGAIN_CODE, FAULT_CODE, MENDABLE_CODE
from train.config import CheckpointConfig, RunConfig
from train.ending import clear_ending, read_ending
from train.lock import LEASE_SECONDS, check_lock
from train.resolve import compose

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""torchrun's own, and the one by which SLURM warns."""
_GIVEN_UP = 1.5
"""Of checkpoint.commit_seconds, by when each rank has given up a save (train/checkpoint/save.py)."""
_SPARE_SECONDS = 30


def stopping_options(checkpoint: CheckpointConfig) -> list[str]:
    """Options of torchrun for a run that ends in order. Whoever starts torchrun for a run takes them.

    The time until torchrun kills is longer than a run can take: schedulers have their own, and what hangs ends by
    parallel.timeout_seconds.
    """
    seconds = math.ceil(checkpoint.grace_seconds + _GIVEN_UP * checkpoint.commit_seconds) + _SPARE_SECONDS
    return [f"--signals-to-handle={SIGNALS}", f"--shutdown-timeout={seconds}"]


def recipe_of(arguments: Sequence[str]) -> RunConfig:
    """The run that `python -m train ARGUMENTS` is. Raises ValueError."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-name", required=True)
    parser.add_argument("--config-path", type=Path)
    options, overrides = parser.parse_known_args(list(arguments))
    return compose(options.config_name, overrides, folder=options.config_path)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun in this process; returns the exit code."""
    arguments = list(arguments)
    run = recipe_of(arguments[arguments.index("train") + 1 :])
    try:
        check_lock(run.run_dir, LEASE_SECONDS)  # the verdict of who trains there is not ours to forget
        clear_ending(run.run_dir)  # before any node's processes start: what they write is of this start
    except (ValueError, OSError) as fault:
        print(fault, file=sys.stderr)
        return MENDABLE_CODE
    fault = _torchrun([*_understood(stopping_options(run.checkpoint)), *arguments])
    if fault is None:
        return 0
    ending = read_ending(run.run_dir)
    if ending is not None and ending.verdict == "again":  # each rank has said why it left
        return AGAIN_CODE
    print(fault, file=sys.stderr)
    return FAULT_CODE


def _torchrun(arguments: list[str]) -> str | None:
    """Why it failed, if it did."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        torchrun.main(arguments)
    except SignalException as end:
        return f"torchrun: ended as {end.sigval.name} asked"
    except ChildFailedError as fault:
        return str(fault)
    return None


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
    raise SystemExit(main(sys.argv[1:]))
