"""What is known of one start of a run: where it runs, on what, with which versions. Nothing of the environment's
variables is looked at, which hold keys."""

import platform
import time
from typing import Any

import torch

from parallel.groups import Groups
from train.checkpoint.run import environment


def this_start(run_id: str | None, groups: Groups) -> dict[str, Any]:
    """For starts.jsonl."""
    gpu = groups.device.type == "cuda"
    return {
        "run": run_id,
        "time": round(time.time(), 3),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(groups.device) if gpu else f"cpu ({platform.machine()})",
        "world_size": groups.world_size,
        "layout": f"dp{groups.dp_size}-tp{groups.tp_size}-pp{groups.pp_size}",
        "versions": environment() | ({"cuda": str(torch.version.cuda)} if gpu else {}),
    }
