"""A fault in one rank of a real run: `python -m tests.harness.faulty FAULT PLANT -u -m train ...` starts that rank.

FAULT is a `Fault` as JSON; PLANT names a planted defect besides, or is "-".
"""

import json
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.prove.planting import replace_name

STEP = 3
"""In which everything happens: a report that is wrong by a step or two must not be right by chance."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one rank, once."""

    kind: str
    """raise, mendable (a ValueError), kill, stop, sleep, pause SECONDS, until FILE (is there), spin (keeps Python's
    lock to itself); or, from outside while it sleeps, ask (torchrun gets a SIGTERM, twice) and orphan (a SIGKILL)."""
    where: str
    """decode (in the loader's thread), data, forward, backward, reduce, update or save."""
    rank: int | None = None
    """None: every rank."""
    microbatch: int = 0
    microbatches: int = 1
    """Of one replica in one step."""
    moment: str = ""
    """A file that gets the time at which it happens."""

    @property
    def calls_before(self) -> int:
        if self.where == "save":
            return 0
        if self.where in ("decode", "forward", "backward"):
            return (STEP - 1) * self.microbatches + self.microbatch
        return STEP - 1

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def lurk(fault: Fault) -> None:
    """Break this process where it passes by."""
    from data.loading.loader import Loader
    from data.loading.rows import RowReader
    from model.vlm import ModelChunk
    from parallel.zero import ZeroOptimizer
    from train.checkpoint.save import Saver

    count = _Count(fault)
    if fault.where == "backward":
        replace_name(ModelChunk, "forward", lambda forward: _with_gradient_hook(forward, count))
        return
    place, name = {
        "decode": (RowReader, "read"),
        "data": (Loader, "next_step"),
        "forward": (ModelChunk, "forward"),
        "reduce": (ZeroOptimizer, "reduce_gradients"),
        "update": (ZeroOptimizer, "step"),
        "save": (Saver, "save"),
    }[fault.where]

    def make(call: Callable[..., Any]) -> Callable[..., Any]:
        def planted(*arguments: Any, **named: Any) -> Any:
            count()
            return call(*arguments, **named)

        return planted

    replace_name(place, name, make)


class _Count:
    """Strikes at the call that is meant."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._calls = 0

    def __call__(self) -> None:
        self._calls += 1
        if self._calls - 1 == self._fault.calls_before:
            Path(self._fault.moment).write_text(repr(time.time()))
            strike(self._fault.kind)


def strike(kind: str) -> None:
    """Let it happen to this process, now."""
    if kind == "raise":
        raise RuntimeError("planted fault")
    if kind == "mendable":
        raise ValueError("planted fault that a user can mend")
    if kind == "spin":
        re.match(r"(a+)+$", "a" * 64 + "b")  # for longer than anybody lives
    if kind.startswith("pause"):
        time.sleep(float(kind.split()[1]))
        return
    if kind.startswith("until"):
        while not Path(kind.partition(" ")[2]).exists():
            time.sleep(0.05)
        return
    signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
    if kind in signals:
        os.kill(os.getpid(), signals[kind])
    time.sleep(600.0)


def _with_gradient_hook(forward: Callable[..., Any], count: _Count) -> Callable[..., Any]:
    """Counts where backward comes to what the first decoder layer has put out."""

    def planted(chunk: Any, *arguments: Any, **named: Any) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            output[0].register_hook(lambda _: count())

        handle = chunk.language.decoder.layers[0].register_forward_hook(hook)
        try:
            return forward(chunk, *arguments, **named)
        finally:
            handle.remove()

    return planted


def main() -> None:
    """Plant the defect, lie in wait if this is the rank, run the module as the interpreter would."""
    _, text, plant, *rest = sys.argv
    from tests.prove.plants import PLANTS  # which know of runs, which know of faults

    fault = Fault(**json.loads(text))
    if plant != "-":
        PLANTS[plant].apply()
    if fault.rank is None or fault.rank == int(os.environ["RANK"]):
        lurk(fault)
    start = rest.index("-m")
    sys.argv = [rest[start + 1], *rest[start + 2 :]]
    runpy.run_module(rest[start + 1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
