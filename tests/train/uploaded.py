"""Checkpoints of plain bytes, sealed as a run seals them, and jobs that upload them to the loopback service."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.store.config import LimiterConfig, OssConfig
from tests.harness.oss_service import OssService
from train.checkpoint import commits, disk
from train.checkpoint.commits import FileEntry
from train.checkpoint.remote import Remote
from train.checkpoint.upload import Job

ADDRESS = "oss://shards/run"
SMALL_BUDGET = 250_000.0
"""Bytes a second, and therefore of a part."""
LARGE, SMALL = 600_000, 20_000


def make_commit(
    run_dir: Path, step: int, frozen: FileEntry | None = None, recipe: str = "seed: 1\n", run: str | None = None
) -> Path:
    """A checkpoint with a file of several parts and one of a single; `frozen` lies in an earlier one, or is made."""
    path = commits.attempt_path(run_dir, step, f"{step:08x}")
    disk.make_folder(path)
    random = np.random.default_rng(step)
    made = {
        "language.00000.safetensors": random.bytes(LARGE),
        "state.json": json.dumps({"step": step, "run": run}).encode(),
        "recipe.yaml": recipe.encode(),
        "quarantine.jsonl": b"",
        "optimizer.00000.safetensors": random.bytes(SMALL),
    }
    if frozen is None:
        made["vision.00000.safetensors"] = np.random.default_rng(0).bytes(SMALL)
    files = {name: FileEntry(digest=disk.write(path / name, [data]), folder=path.name) for name, data in made.items()}
    if frozen is not None:
        files["vision.00000.safetensors"] = frozen
    commits.seal(path, files)
    return path


def frozen_of(path: Path) -> FileEntry:
    return commits.listed_files(path)["vision.00000.safetensors"]


def oss_of(service: OssService, folder: Path, **changes: Any) -> OssConfig:
    values: dict[str, Any] = {
        "endpoint": service.endpoint,
        "limiter": LimiterConfig(folder=str(folder / "limits"), requests_per_second=5000, start=1.0),
        "connect_seconds": 10.0,
        "read_seconds": 1.0,
        "deadline_seconds": 20.0,
        "first_backoff_seconds": 0.01,
        "longest_backoff_seconds": 0.05,
    }
    return OssConfig(**values | changes)


def job_of(path: Path, oss: OssConfig, *, keep: int = 2, keep_every: int | None = None, budget: float = 5e6) -> Job:
    return Job(
        folder=str(path),
        address=ADDRESS,
        oss=asdict(oss),
        bytes_per_second=budget,
        keep=keep,
        keep_every=keep_every,
    )


def remote_at(oss: OssConfig) -> Remote:
    return Remote(address=ADDRESS, oss=oss)


def content(run: Path) -> Mapping[str, bytes]:
    """Every file of a run's checkpoints."""
    root = run / "checkpoints"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
