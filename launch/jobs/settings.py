"""What every process of a run is given by its environment, unless it has been set already, and why."""

import math
from dataclasses import dataclass

from parallel.config import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One variable."""

    name: str
    value: str
    reason: str


def settings(parallel: ParallelConfig) -> tuple[Setting, ...]:
    """Of the ranks of a run. `launch/jobs/torchrun.py` sets them, `--print` shows them."""
    timeout = math.ceil(parallel.timeout_seconds)
    return tuple(
        Setting(name=name, value=value, reason=reason)
        for name, value, reason in (
            ("OMP_NUM_THREADS", "1", "processes of one host share its cores, and threads of several would fight"),
            (
                "CUDA_DEVICE_MAX_CONNECTIONS",
                "1",
                "kernels run in the order of their launch, on which hiding the tensor axis's traffic counts",
            ),
            (
                "PYTORCH_CUDA_ALLOC_CONF",
                "expandable_segments:True",
                "each row has its own length: blocks would fragment",
            ),
            ("NCCL_DEBUG", "WARN", "a broken link or a wrong driver is told in the rank's log; silent otherwise"),
            (
                "NCCL_IB_TIMEOUT",
                "22",
                "17 s a try, 7 tries: a switch that reroutes is waited for, a dead link is not for longer than 2 min",
            ),
            (
                "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
                str(timeout),
                "parallel.timeout_seconds: torch would abort after 480 s, before the watch has said which rank hangs",
            ),
            ("PYTHONWARNINGS", "ignore::UserWarning,ignore::FutureWarning", "megatron-core warns of what is not used"),
            ("HYDRA_FULL_ERROR", "1", "Hydra cuts tracebacks short, which hides where training failed"),
        )
    )


def shown(parallel: ParallelConfig) -> list[str]:
    """The same for people."""
    return [
        "and in the environment of each rank, unless it is set already:",
        *(f"  {f'{each.name}={each.value}':<56} {each.reason}" for each in settings(parallel)),
    ]
