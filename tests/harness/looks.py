"""What ranks see that look at a run together, one of which has something that is not in order."""

import contextlib
import io
import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from launch.jobs import together
from parallel import links
from parallel.links import Effort
from parallel.world import model_parallel, pick_device
from tests.prove.planting import replace_name
from train import nodes, preflight
from train.checks import Check, PreflightError
from train.config import RunConfig

SMALL = Effort(nbytes=1 << 16, repeats=2, pairs=True)

ODD = {
    "clock": ("clocks: that of n", "chrony or ntpd"),
    "code": ("on n1", "one checkout and one environment"),
    "folder": ("n1 does not see what n0 has written", "file system that all nodes share"),
    "files": ("files: on n1: gone", ""),
    "disk": ("are free at", "triptych checkpoint prune"),
    "link": ("data axis: ", "look at the cables"),
}
"""What rank 1 may have (of the disk: all), what is told of it, and its cure. The link is that of ranks 1 and 2."""


def looked(run: RunConfig, odd: str = "", thorough: bool = True) -> tuple[list[str], str]:
    """Lines of the table that this rank has printed, and its error. Each rank stands for a node of its own."""
    mends = [replace_name(preflight, "THOROUGH", lambda _: SMALL), *_break(odd, dist.get_rank())]
    os.environ |= {"SLURMD_NODENAME": f"n{dist.get_rank()}", "LOCAL_RANK": "0"}
    out, said = io.StringIO(), ""
    try:
        with model_parallel(run.parallel, pick_device(), seed=0) as groups, contextlib.redirect_stdout(out):
            own = (lambda: together.node_checks(run)) if thorough else list
            preflight.check_together(run, groups, thorough=thorough, own=own)
    except PreflightError as fault:
        said = str(fault)
    finally:
        for mend in mends:
            mend()
        del os.environ["SLURMD_NODENAME"]
        os.environ["LOCAL_RANK"] = str(dist.get_rank())
    return out.getvalue().splitlines(), said


def _break(odd: str, rank: int) -> list[Callable[[], None]]:
    if odd == "disk":
        return [replace_name(preflight, "free_bytes", lambda _: lambda path: 1000)]
    if odd == "link":
        return [replace_name(links, "_exchange", lambda exchange: _slowed(exchange, {1, 2}, rank))]
    ways: dict[str, Any] = {
        "clock": (preflight, "clock", lambda clock: lambda: clock() + 60.0),
        "code": (nodes, "_digest", lambda _: lambda: "another"),
        "folder": (preflight, "_leave_token", lambda leave: lambda *given: leave(*given).with_name("elsewhere")),
        "files": (together, "file_checks", lambda _: lambda run: [Check(name="files", found="gone", ok=False)]),
    }
    return [replace_name(*ways[odd])] if odd in ways and rank == 1 else []


def _slowed(exchange: Any, pair: set[int], rank: int) -> Any:
    """The messages of one pair take half a second more."""

    def planted(tensor: Any, other: int, group: Any) -> None:
        exchange(tensor, other, group)
        if {rank, other} == pair:
            time.sleep(0.5)

    return planted


def missed(told: list[tuple[list[str], str]], odd: str) -> list[str]:
    """What is wrong with what the ranks have told of it."""
    what, cure = ODD[odd]
    lines = [line for printed, _ in told for line in printed if " FAIL " in line]
    found = {
        "ranks that do not end, or with other words": len({said for _, said in told}) == 1 and bool(told[0][1]),
        "the fault is not named": what in told[0][1],
        "no cure": cure in told[0][1],
        "not one line of the table": len(lines) == 1,
        "something else": told[0][1].count("\n  - ") == 1,
    }
    return [fault for fault, right in found.items() if not right]
