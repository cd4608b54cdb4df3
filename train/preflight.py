"""What the ranks of a run look at together before any of them has a weight.

Versions, clocks, the run's folder and its disk at every start: one gathering of a few hundred bytes a rank, well below
a second. On GPUs the links of the axes as well, for which NCCL makes the communicators that training needs anyway. The
thorough form (`triptych preflight`) sends more, to every neighbour, and reads a sample of each source on each node.
"""

import math
import os
import secrets
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from model.hf_weights import canonical_shape, hf_pieces
from parallel.groups import Groups
from parallel.links import Effort, Speed, measure, slow
from train.checkpoint.commits import attempts
from train.checkpoint.disk import free_bytes
from train.checks import Check, PreflightError
from train.config import RunConfig
from train.nodes import (
    Facts,
    clock,
    clock_check,
    folder_check,
    gpu_faults,
    host_name,
    named,
    size_of,
    versions,
    versions_check,
)

OUTLIER = 3.0
"""A link with less than this part of what its kind has is broken rather than busy."""
LEAST_GIGABYTES = 1.0
"""A second, between GPUs: what NCCL reaches over a plain 10 Gbit network when it has found nothing better."""
BRIEF = Effort(nbytes=8 << 20, repeats=3, pairs=False)
THOROUGH = Effort(nbytes=64 << 20, repeats=5, pairs=True)
_CLOCK_ROUNDS = 3


def check_together(
    run: RunConfig, groups: Groups, *, thorough: bool = False, own: Callable[[], list[Check]] = list
) -> None:
    """Print one table on rank 0. To be called by all ranks; raises PreflightError on all where something fails.

    Args:
        own: what each node has to find out for itself; called on its first rank.
    """
    facts: list[Facts] = [None] * groups.world_size  # type: ignore[list-item]
    token = _leave_token(run, groups)
    told = _facts(run, groups, thorough, token, own)
    dist.all_gather_object(facts, told)
    if groups.rank == 0:
        with suppress(OSError):  # it was never there
            token.unlink()
    agreed: list[list[Check]] = [[]]
    if groups.rank == 0:  # room on a disk is not the same from one moment to the next
        agreed = [
            [
                *_merged(facts),
                versions_check(facts),
                clock_check(facts),
                folder_check(run, facts),
                disk_check(run),
                *link_checks(facts, groups.device.type),
            ]
        ]
    dist.broadcast_object_list(agreed, src=0)
    (checks,) = agreed
    if groups.rank == 0:
        print("\n".join(check.line for check in checks), flush=True)
    if not all(check.ok for check in checks):
        raise PreflightError(checks)


def _facts(run: RunConfig, groups: Groups, thorough: bool, token: Path, own: Callable[[], list[Check]]) -> Facts:
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    clocks = []
    for _ in range(_CLOCK_ROUNDS):
        dist.barrier()
        clocks.append(clock())
    measured = thorough or groups.device.type == "cuda"
    return Facts(
        host=host_name(),
        versions=versions(groups.device) if first else {},
        clocks=clocks,
        sees_folder=token.exists(),
        speeds=measure(groups, THOROUGH if thorough else BRIEF) if measured else [],
        own=[*(own() if first else []), *gpu_faults(groups.device)],
    )


def disk_check(run: RunConfig) -> Check:
    """Room for the checkpoints that are kept, and the one being written."""
    each = commit_bytes(run)
    there = min(sum(attempt.sealed for attempt in attempts(run.run_dir)), run.checkpoint.keep)
    due, free = (run.checkpoint.keep + 1 - there) * each, free_bytes(Path(run.run_dir))
    found = f"{run.checkpoint.keep} + 1 checkpoints of {size_of(each)} need {size_of(due)}; {size_of(free)} are free"
    if due <= free:
        return Check(name="disk", found=found)
    cure = "make room, lower checkpoint.keep, or put run_dir elsewhere (`triptych checkpoint prune` deletes old ones)"
    return Check(name="disk", found=f"{found} at {run.run_dir}; {cure}", ok=False)


def commit_bytes(run: RunConfig) -> int:
    """Of a checkpoint: weights in the run's precision; a master and two moments, fp32, of what is trained."""
    count = dict.fromkeys(run.model.parts, 0)
    for name, pieces in hf_pieces(run.model).items():
        count[name.partition(".")[0]] += math.prod(canonical_shape(pieces))
    weight = 2 if run.precision == "bf16" else 4
    return sum(n * (weight + (12 if part in run.stage.trainable else 0)) for part, n in count.items())


def link_checks(facts: Sequence[Facts], device: str) -> list[Check]:
    """One for each axis that was measured, with the slowest group and pair by their nodes."""
    speeds = [speed for each in facts for speed in each.speeds]
    hosts = [each.host for each in facts]
    late = slow(speeds, OUTLIER if device == "cuda" else OUTLIER**3)  # processes that share cores are no links
    return [
        _link_check(axis, [speed for speed in speeds if speed.axis == axis], late, hosts, device)
        for axis in dict.fromkeys(speed.axis for speed in speeds)
    ]


def _link_check(axis: str, speeds: Sequence[Speed], late: Sequence[Speed], hosts: Sequence[str], device: str) -> Check:
    least = min(speeds, key=lambda speed: speed.gigabytes)
    middle = statistics.median(speed.gigabytes for speed in speeds)
    found = f"{middle:.3g} GB/s in the middle, least {least.gigabytes:.3g} between {_where(least, hosts)}"
    wrong = [speed for speed in late if speed.axis == axis]
    if wrong:
        named = "; ".join(f"{_where(speed, hosts)} has {speed.gigabytes:.3g} GB/s" for speed in wrong[:5])
        cure = "look at the cables and ports of the node that all of these have in common, or leave it out (--exclude)"
        return Check(name=f"{axis} axis", found=f"{middle:.3g} GB/s in the middle, but {named}; {cure}", ok=False)
    if device == "cuda" and least.gigabytes < LEAST_GIGABYTES:
        cure = "set NCCL_SOCKET_IFNAME or NCCL_IB_HCA, and see with NCCL_DEBUG=INFO which network NCCL has chosen"
        return Check(name=f"{axis} axis", found=f"{found}, as over a plain network; {cure}", ok=False)
    return Check(name=f"{axis} axis", found=found)


def _merged(facts: Sequence[Facts]) -> list[Check]:
    """What nodes found out for themselves: once where they agree, else with their names."""
    told: dict[tuple[str, bool, str], list[str]] = {}
    for each in facts:
        for check in each.own:
            told.setdefault((check.name, check.ok, check.found), []).append(each.host)
    nodes = {each.host for each in facts}

    def words(found: str, ok: bool, where: list[str]) -> str:
        return found if ok or set(where) == nodes else f"on {named(sorted(set(where)))}: {found}"

    return [
        Check(name=name, ok=ok, found=words(found, ok, where))
        for (name, ok, found), where in told.items()
        if not ok or not any(other == name and not fine for other, fine, _ in told)
    ]


def _leave_token(run: RunConfig, groups: Groups) -> Path:
    """A file of a name that no node has ever asked for, so that none has cached that it is not there."""
    names = [secrets.token_hex(8)]
    dist.broadcast_object_list(names, src=0)
    path = Path(run.run_dir) / f".preflight_{names[0]}"
    if groups.rank == 0:
        with suppress(OSError):  # nobody sees it then, which the table tells
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    dist.barrier()
    return path


def _where(speed: Speed, hosts: Sequence[str]) -> str:
    ranks = f"ranks {', '.join(map(str, speed.ranks[:4]))}{', ...' if len(speed.ranks) > 4 else ''}"
    return f"{ranks} ({named(list(dict.fromkeys(hosts[rank] for rank in speed.ranks)))})"
