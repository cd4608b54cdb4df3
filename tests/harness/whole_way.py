"""A run whose data come from object storage that fails in every way, against the same run from a local folder."""

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from data.store.config import LimiterConfig, OssConfig
from parallel.config import ParallelConfig
from tests.harness.oss_cases import oss_service
from tests.harness.oss_service import OssService
from tests.harness.runs import RunDifference, compare_runs, launch, make_data, write_recipe
from train.resolve import from_yaml, to_yaml

PROCESSES = 4  # DP2 x PP2
FAULTS = (
    {"kind": "truncate", "at": 700, "skip": 6, "every": 9, "times": -1},
    {"kind": "flip", "at": 600, "skip": 9, "every": 14, "times": -1},
)
"""Never twice in a row, which would be a shard that is damaged."""


@dataclass(frozen=True, kw_only=True)
class WholeWay:
    """A cold and a warm run against the local one."""

    cold: RunDifference
    warm: RunDifference
    quarantined: int
    """Records of samples that could not be used, over all runs."""
    struck: dict[str, int]
    """How often what was injected struck: each has to be more than none."""


def whole_way(folder: Path, steps: int) -> WholeWay:
    """Train stage 2 on DP2 x PP2 three times: from a folder, from `oss://` with a cold decode cache, and a warm one."""
    data = make_data(folder / "data")
    recipe = write_recipe(folder / "recipe", data, "stage2", ParallelConfig(pipeline=2), PROCESSES)
    common = (f"stage.steps={steps}", "data.workers=1", "data.video.timeout_seconds=5")
    launch(recipe, folder / "local", *common)
    with oss_service() as (service, limits):
        address = service.put_folder(data / "mixed", "mixed", ".tar")
        path = recipe.folder / f"{recipe.name}.yaml"
        run = from_yaml(path.read_text())
        (source,) = run.data.sources
        oss = OssConfig(
            endpoint=service.endpoint,
            limiter=LimiterConfig(folder=limits, requests_per_second=400),
            first_backoff_seconds=0.01,
            longest_backoff_seconds=0.2,
        )
        remote = replace(source, path=address, index=str(data / "mixed" / "index"))
        path.write_text(to_yaml(replace(run, data=replace(run.data, sources=(remote,), oss=oss))))
        service.throttle(requests=60)
        service.plan(*FAULTS)
        cached = (*common, f"data.video.cache_dir={folder / 'cache'}")
        with _Saboteur(folder / "cold") as saboteur:
            launch(recipe, folder / "cold", *cached)
        launch(recipe, folder / "warm", *cached)
        struck = saboteur.struck | _by_service(service)
    runs = [folder / name for name in ("local", "cold", "warm")]
    return WholeWay(
        cold=compare_runs(runs[0], runs[1]),
        warm=compare_runs(runs[0], runs[2]),
        quarantined=sum(len(path.read_text().splitlines()) for run in runs for path in run.glob("quarantine_*.jsonl")),
        struck=struck,
    )


def _by_service(service: OssService) -> dict[str, int]:
    state = service.state()
    return {
        "requests refused by the throttle": state["counts"].get("GET object refused", 0),
        "bodies resumed after a cut": sum("if-match" in entry for entry in state["log"]),
        "bodies cut or flipped": sum(fault["done"] for fault in state["faults"]),
    }


class _Saboteur:
    """Kills a worker of a run and stops a decoder of it, each once, when there is one after the first step."""

    def __init__(self, run_dir: Path) -> None:
        self.struck = {"workers killed": 0, "decoders stopped": 0}
        self._run_dir = run_dir
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._lurk, daemon=True)

    def __enter__(self) -> "_Saboteur":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _lurk(self) -> None:
        targets = {
            "decoders stopped": ("decode_child.py", signal.SIGSTOP),  # one that is idle hangs with its next clip
            "workers killed": ("data.loading.worker", signal.SIGKILL),
        }
        while targets and not self._over.is_set():
            time.sleep(0.05)
            if not self._has_begun():
                continue
            for name, (program, number) in list(targets.items()):
                for pid in _processes(program, str(self._run_dir.parent)):
                    os.kill(pid, number)
                    self.struck[name] += 1
                    del targets[name]
                    break

    def _has_begun(self) -> bool:
        path = self._run_dir / "metrics.jsonl"
        return path.exists() and path.read_text().count("\n") >= 2


def _processes(program: str, mark: str) -> list[int]:
    """Living processes that run `program`, a module or a file, and descend from a run in `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(word.rpartition("/")[2] == program for word in words) and mark in _ancestry(int(path.name)):
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found


def _ancestry(pid: int) -> str:
    """Command lines of a process and of those that it came from."""
    lines = []
    while pid > 1:
        lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return "\n".join(lines)
