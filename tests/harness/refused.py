"""Layouts that a batch or a model cannot have, and what is said of them before any process group is made."""

import os
import subprocess
import sys
from pathlib import Path

from parallel.config import ParallelConfig
from tests.harness.runs import ROOT, write_recipe

REFUSED = {
    "fewer key/value heads than tensor ranks": (
        4,
        ("parallel.tensor=4",),
        ("model.language.num_kv_heads=2", "parallel.tensor=4", "1 or 2 way(s)"),
    ),
    "interleaving, 3 microbatches for 2 pipeline stages": (
        2,
        ("parallel.pipeline=2", "parallel.chunks=2", "data.rows_per_step=3"),
        ("3 microbatches", "parallel.pipeline=2", "parallel.chunks=2", "data.rows_per_step=4"),
    ),
    "interleaving, 1 microbatch a replica": (
        4,
        ("parallel.pipeline=2", "parallel.chunks=2", "data.rows_per_step=2"),
        ("1 microbatches a replica", "parallel.pipeline=2", "parallel.chunks=2", "data.rows_per_step=4"),
    ),
}
"""Processes, overrides of a recipe, and what the refusal has to say."""


def said_alone(folder: Path, processes: int, overrides: tuple[str, ...], plant: str | None) -> str:
    """What the first of several processes says and ends with while none of the others is there: in a process group it
    would wait for them. Empty where it did not end by itself. `plant` names a defect that it plants in itself first."""
    recipe = write_recipe(folder, folder / "no data", "stage2", ParallelConfig(), processes)
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(processes)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, *(("-m", "tests.prove.planted", plant) if plant else ()), "-m", "train"]
    command += ["--config-path", str(folder), "--config-name", recipe.name, *overrides]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=os.environ | world, capture_output=True, text=True, timeout=240, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return ended.stderr if ended.returncode == 2 else ""
