"""The last calls into each process group, from the flight recorder that torch keeps of them by default.

Ranks that wait for each other for ever have, in some group, not made the same calls. The number of the last call into
each group shows which rank is behind, and its shape which call it was.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch._C import _distributed_c10d

_RECORDERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
"""gloo's, and NCCL's where torch was built with it: each keeps its last 2000 calls."""
_SHOWN = 4
"""Newest calls that are told one by one; of older ones the last of each group."""


def last_calls() -> str:
    """A line for each of the newest calls of this process, then for the last of every other group; newest first.

    Safe from any thread. Empty before the first call, and where the recorder is off (TORCH_FR_BUFFER_SIZE=0).
    """
    entries: list[dict[str, Any]] = []
    for name in _RECORDERS:
        with suppress(AttributeError, TypeError, ValueError, RuntimeError):  # another torch keeps it otherwise
            entries += json.loads(getattr(_distributed_c10d, name)()).get("entries", [])
    entries.sort(key=lambda entry: entry["time_created_ns"], reverse=True)
    now = time.time()
    lines, groups = [], set()
    for place, entry in enumerate(entries):
        group = tuple(entry["process_group"])
        if place < _SHOWN or group not in groups:
            lines.append(line_of(entry, now))
        groups.add(group)
    return "".join(f"{line}\n" for line in lines)


def line_of(entry: Mapping[str, Any], now: float) -> str:
    """One call: what, its number in its group, the group, sizes, how long ago, and whether it has ended."""
    number = entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]
    sizes = " ".join(str(tuple(size)) for size in entry["input_sizes"] or entry["output_sizes"])
    kinds = " ".join(dict.fromkeys(entry["input_dtypes"] or entry["output_dtypes"]))
    state = "ended" if entry["retired"] or entry["state"] == "completed" else "not ended"
    ago = now - entry["time_created_ns"] / 1e9
    group = entry["process_group"][1] or entry["process_group"][0]
    return f"{entry['profiling_name']} {number} of {group}, {sizes} {kinds}, begun {ago:.1f} s ago, {state}"
