"""What the nodes of a run tell of themselves, and what of it does not go together."""

import hashlib
import os
import platform
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from parallel.links import Speed
from train.checks import Check
from train.config import RunConfig

MOST_SKEW = 5.0
"""Seconds between clocks. Requests to object storage are signed with the time, and commits are told apart by it."""
_PACKAGES = ("torch", "megatron-core", "deepspeed", "transformers", "numpy", "numba", "safetensors", "hydra-core")
_OURS = ("train", "model", "data", "parallel", "launch")
_FREE_SHARE = 0.9


@dataclass(kw_only=True, slots=True)
class Facts:
    """What one rank tells."""

    host: str
    versions: dict[str, str]
    """Of the host's first rank; empty on the others."""
    clocks: list[float]
    """time.time() as each of several barriers let go."""
    sees_folder: bool
    speeds: list[Speed] = field(default_factory=list)
    own: list[Check] = field(default_factory=list)


def host_name() -> str:
    """SLURM's name of this node, or its own: that is what somebody can take out of the partition."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def versions(device: torch.device) -> dict[str, str]:
    """What has to be the same on all nodes."""
    found = {"python": platform.python_version(), "code": _digest()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    if device.type == "cuda":
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["GPU"] = torch.cuda.get_device_name(device)
    return found


def versions_check(facts: Sequence[Facts]) -> Check:
    """Equal on all nodes."""
    told = {each.host: each.versions for each in facts if each.versions}
    hosts = list(told)
    wrong = []
    for name in told[hosts[0]]:
        values: dict[str, list[str]] = {}
        for host in hosts:
            values.setdefault(told[host].get(name, "none"), []).append(host)
        if len(values) > 1:
            shown = ", ".join(f"{value} on {named(where)}" for value, where in values.items())
            wrong.append(f"{name} is {shown}")
    if wrong:
        cure = "start all nodes from one checkout and one environment, on a file system that they share"
        return Check(name="versions", found=f"{'; '.join(wrong)}; {cure}", ok=False)
    first = told[hosts[0]]
    shown = ", ".join(f"{name} {first[name]}" for name in first if name in ("python", "torch", "NCCL", "GPU", "code"))
    return Check(name="versions", found=f"{shown}, on {counted(len(hosts), 'node')}")


def clock_check(facts: Sequence[Facts]) -> Check:
    """Clocks of all nodes against the median of them."""
    rounds = range(len(facts[0].clocks))
    middles = [statistics.median(each.clocks[number] for each in facts) for number in rounds]

    def skew(each: Facts) -> float:
        # Whoever comes late out of a barrier looks ahead; out of several, nobody is late each time.
        return min((each.clocks[number] - middles[number] for number in rounds), key=abs)

    worst = max(facts, key=lambda each: abs(skew(each)))
    if abs(skew(worst)) <= MOST_SKEW:
        return Check(name="clocks", found=f"at most {abs(skew(worst)):.3f} s apart")
    return Check(
        name="clocks",
        found=f"that of {worst.host} is {abs(skew(worst)):.1f} s {'ahead' if skew(worst) > 0 else 'behind'}, the limit "
        f"is {MOST_SKEW:g} s; set it by chrony or ntpd on that node, or leave the node out",
        ok=False,
    )


def folder_check(run: RunConfig, facts: Sequence[Facts]) -> Check:
    """One folder on all nodes: each writes its share of a checkpoint there."""
    blind = sorted({each.host for each in facts if not each.sees_folder})
    if not facts[0].sees_folder:
        found = f"{facts[0].host} cannot write run_dir={run.run_dir}; give it rights and room there, or name another"
        return Check(name="run folder", found=found, ok=False)
    if not blind:
        return Check(name="run folder", found=f"{run.run_dir} is the same on all nodes")
    return Check(
        name="run folder",
        found=f"{named(blind)} does not see what {facts[0].host} has written to run_dir={run.run_dir}; put it on a "
        "file system that all nodes share",
        ok=False,
    )


def gpu_faults(device: torch.device) -> list[Check]:
    """A GPU that somebody else has filled fails late, and looks like a recipe that is too large."""
    if device.type != "cuda":
        return []
    free, total = torch.cuda.mem_get_info(device)
    if free >= _FREE_SHARE * total:
        return []
    cure = "end what else runs there (nvidia-smi shows it), or leave the node out"
    found = f"{device} of {host_name()} has {size_of(free)} of {size_of(total)} free; {cure}"
    return [Check(name="GPU", found=found, ok=False)]


def _digest() -> str:
    """Of our own sources."""
    found = hashlib.blake2b(digest_size=4)
    root = Path(__file__).resolve().parent.parent
    for path in sorted(path for folder in _OURS for path in (root / folder).rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def clock() -> float:
    return time.time()


def named(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def size_of(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g} GB"
