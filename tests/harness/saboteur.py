"""A run that is watched and failed: `python -m tests.harness.saboteur ORDERS PLANT -u -m MODULE ...`.

ORDERS is `Orders` as JSON; PLANT names a planted defect besides, or is "-". A trainer records what it is given and
starts its data workers in the same way, which is how plant and faults reach those. Faults strike from within, in the
middle of the work that they are to break: a signal from outside meets a worker that waits, or a decoder that has
nothing left to decode.
"""

import itertools
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.prove.planting import replace_name

READS_BEFORE, CLIPS_BEFORE = 12, 1
"""Of a process, before it is struck: beyond its first row, which has ten samples, and early for a run of few steps."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What is done to a run."""

    folder: str
    """For what is recorded, and what has struck; it has to be there."""
    strike: bool
    """Kill a worker of rank 0 at a sample, and stop a decoder of another reader as it is given a clip; each once."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def watch_trainer(orders: Orders, plant: str) -> None:
    """Record rows as the trainer gets them, and start workers by this module."""
    from data.loading import pool
    from data.loading.loader import Loader
    from tests.harness.delivered import record

    numbers = itertools.count(1)

    def recorded(next_step: Callable[..., Any]) -> Callable[..., Any]:
        def planted(self: Any) -> Any:
            step, rows = next_step(self)
            record(Path(orders.folder), self._dp_rank, next(numbers), rows, self._config.image.merge_size**2)
            return step, rows

        return planted

    def through_here(start_child: Callable[..., Any]) -> Callable[..., Any]:
        def planted(module: str, *arguments: str, **named: Any) -> Any:
            return start_child("tests.harness.saboteur", orders.to_json(), plant, "-m", module, *arguments, **named)

        return planted

    replace_name(Loader, "next_step", recorded)
    replace_name(pool, "start_child", through_here)


def watch_life(rank: int, orders: Orders, plant: str, environment: dict[str, str]) -> None:
    """The same of a rank that was forked, from a server that does not know these variables."""
    os.environ |= environment
    watch_trainer(orders, plant)


def fail_worker(orders: Orders) -> None:
    """Lie in wait in a worker: rank 0's for itself, the others' for their decoders, so that neither hides the other."""
    from data.index.file import Index
    from data.visual.decode_process import DecoderProcess

    def killed(read_run: Callable[..., Any]) -> Callable[..., Any]:
        calls = 0

        def planted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > READS_BEFORE and _first(orders, "killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            return read_run(*arguments)

        return planted

    def stopped(ask: Callable[..., Any]) -> Callable[..., Any]:
        clips = 0

        def planted(self: Any, request: Any, *rest: Any) -> Any:
            nonlocal clips
            clips += request is not None
            if request is not None and clips > CLIPS_BEFORE and _first(orders, "stopped"):
                os.kill(self._child.pid, signal.SIGSTOP)
            return ask(self, request, *rest)

        return planted

    if os.environ["RANK"] == "0":
        replace_name(Index, "read_run", killed)
    else:
        replace_name(DecoderProcess, "ask", stopped)


def _first(orders: Orders, what: str) -> bool:
    """Whether this happens for the first time in the run; a worker's successor counts anew."""
    try:
        (Path(orders.folder) / what).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main() -> None:
    """Plant, watch or lie in wait, then run the module as the interpreter would."""
    _, text, plant, *rest = sys.argv
    orders = Orders(**json.loads(text))
    start = rest.index("-m")
    module = rest[start + 1]
    if plant != "-":
        from tests.prove.plants import PLANTS  # which take seconds to import

        PLANTS[plant].apply()
    if module == "data.loading.worker":
        if orders.strike:
            fail_worker(orders)
    else:
        watch_trainer(orders, plant)
    sys.argv = [module, *rest[start + 2 :]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
