"""Answers and a command of the user's beside training: one process that lives no longer than the run.

It is `python -m launch.answering.beside`: it exports the checkpoint, has the exported model answer held-out samples,
runs the command, and leaves a file of results. Here it is started, looked at between steps and ended; nothing here
waits for it while the run trains, and nothing that becomes of it can end the run; the end of the stage waits for it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.child import ROOT, deaf
from train.config import RunConfig

FOLDER = "evaluations"
RESULT = "result.json"
_OF_THE_JOB = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_")
"""Variables by which a program would take itself for a rank of this run."""
_MOST_CHARACTERS = 4000


class Beside:
    """What runs beside the run, one step's at a time. Of rank 0 alone."""

    def __init__(self, run: RunConfig, module: str = "launch.answering.beside") -> None:
        self._module = module
        self._evaluate = run.evaluate
        self._folder = Path(run.run_dir).resolve() / FOLDER
        self._process: subprocess.Popen[bytes] | None = None
        self._step = 0
        self._next: tuple[Path, int] | None = None
        """Waits for the one under way."""
        self._deadline = 0.0
        self._told: list[dict[str, Any]] = []

    def start(self, commit: Path, step: int) -> None:
        """Begin with a checkpoint. While an earlier one is still under way the newest waits; others are left out."""
        if self._next is not None and self._next[1] != step:
            why = f"left out: what began after step {self._step} was still running, and step {step} came"
            self._told.append({"step": self._next[1], "fault": why})
        self._next = (commit, step) if self._is_running() else None
        if self._next is not None:
            return
        self._told += self._ended()
        out = self._folder / f"step_{step:08d}"
        wanted = {"commit": str(commit.resolve()), "out": str(out), "step": step, "evaluate": asdict(self._evaluate)}
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / RESULT).unlink(missing_ok=True)
            log = (out / "log.txt").open("ab")
            with log, deaf():
                # Its stdin is a pipe that closes when this process ends, however it ends: it then ends all it started.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self._module, json.dumps(wanted)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env=self._environment(),
                    start_new_session=True,
                )
        except OSError as error:
            self._told.append({"step": step, "fault": f"not started: {error}"})
            return
        self._step, self._deadline = step, time.monotonic() + self._evaluate.command_seconds

    def poll(self) -> list[dict[str, Any]]:
        """Results and faults since the last call: {"step", "fault", and what there is of "answers" and "command"}."""
        if self._is_running() and time.monotonic() > self._deadline:
            self._told.append({"step": self._step, "fault": f"ended after {self._evaluate.command_seconds:g} s"})
            self._kill()
        self._told += self._ended()
        if self._next is not None and not self._is_running():
            self.start(*self._next)
        told, self._told = self._told, []
        return told

    def wait(self, seconds: float, asked_to_end: Callable[[], bool]) -> None:
        """Until all has ended, for at most so long."""
        end, told = time.monotonic() + seconds, self.poll()
        while self._is_running():
            if time.monotonic() > end or asked_to_end():
                told += [{"step": step, "fault": "ended with the run (evaluate.wait_seconds)"} for step in self.steps]
                self._next = None
                self._kill()
                break
            time.sleep(0.05)
            told += self.poll()
        self._told = told + self._told

    @property
    def steps(self) -> list[int]:
        """What is under way, and what waits for it."""
        running = [self._step] if self._is_running() else []
        return running + ([self._next[1]] if self._next is not None else [])

    def close(self) -> None:
        """End it and all it has started."""
        self._kill()

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ended(self) -> list[dict[str, Any]]:
        process = self._process
        if process is None or process.poll() is None:
            return []
        self._kill()  # what it may have left in its session
        path = self._folder / f"step_{self._step:08d}" / RESULT
        try:
            told = json.loads(path.read_text())
            if not isinstance(told, dict):
                raise ValueError("it is no JSON object")
        except (OSError, ValueError) as error:
            log = path.with_name("log.txt")
            why = f"it left with {process.returncode} and no result ({error}); {log} says why"
            return [{"step": self._step, "fault": why[:_MOST_CHARACTERS]}]
        return [{"fault": None} | told | {"step": self._step}]

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_OF_THE_JOB)}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return kept | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": self._evaluate.devices}
