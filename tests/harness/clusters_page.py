"""docs/clusters.md, followed line by line on two virtual nodes."""

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.runs import ROOT, Recipe
from tests.harness.slurm import Cluster
from tests.harness.slurm_story import OVER

PAGE = ROOT / "docs" / "clusters.md"
JOB = "812"
"""How the page calls the newest job."""
_COMMAND = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
_PLACES = {"runs/mine3": "mine3", "runs/mine": "mine"}
STEPS = 60
"""Of the run: more than pass before somebody who reads on has stopped it."""


def commands() -> list[str]:
    """Every line of the page that is to be typed."""
    return _COMMAND.findall(re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL))


@dataclass(kw_only=True)
class Reader:
    """Somebody who types what the page says, with a recipe of their own."""

    slurm: Cluster
    folder: Path
    recipes: dict[str, Recipe]
    """By the name that the page uses."""
    job: int = 0
    wrong: list[str] = field(default_factory=list)

    def follow(self) -> list[str]:
        """What did not go as the page says; lines after one that went wrong would wait for what it did not do."""
        for line in commands():
            self._type(line)
            if self.wrong:
                return self.wrong
        if self.job:
            self._ended(self.job, "COMPLETED")
        return self.wrong

    def _type(self, line: str) -> None:
        words = self._own(line)
        if words[0] == "tail":
            self._await_steps()
        if words[0].startswith("NNODES="):
            self._check(line, *self._on_two_nodes(words))
            return
        done = self._run(words)
        self._check(line, done)
        if "slurm" in words and "--print" not in words and done.returncode == 0:
            number = int(done.stdout.removeprefix("job ").partition(":")[0])
            if "--preflight" in words:
                self._ended(number, "COMPLETED")
            else:
                self.job = number
        if words[0] == "scancel":
            self._ended(self.job, "CANCELLED")

    def _own(self, line: str) -> list[str]:
        """The words of a line with this reader's names in the place of the page's."""
        words = []
        for word in shlex.split(line.replace(JOB, str(self.job))):
            for ours, theirs in _PLACES.items():
                word = word.replace(ours, str(self.folder / theirs))
            if word in self.recipes:
                recipe = self.recipes[word]
                words[-1:] = ["--config-path", str(recipe.folder), "--config-name"]
                word = recipe.name
            words.append(word)
        if "--nodes" in words:
            words[words.index("--nodes") + 1] = "2"
            words += ["--gpus-per-node", "1"]
        if any(word.startswith("run_dir=") for word in words):
            words += ["checkpoint.every_steps=20", f"stage.steps={STEPS}", "log.every_steps=1"]
        return [sys.executable, "-m", "launch.cli", *words[1:]] if words[0] == "triptych" else words

    def _on_two_nodes(self, words: list[str]) -> "list[subprocess.CompletedProcess[str]]":
        """The same command twice at once, in a folder of its own."""
        variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        variables |= {"MASTER_ADDR": "127.0.0.1", "NPROC_PER_NODE": "1"}
        command = [word.replace("/mine", "/by_hand") for word in words if not re.match(r"[A-Z_]+=", word)]
        with subprocess.Popen(command, env=self._environment() | variables, cwd=ROOT) as other:
            done = self._run(command, **variables)
        return [done, subprocess.CompletedProcess(command, other.returncode, "", "")]

    def _run(self, words: list[str], **variables: str) -> "subprocess.CompletedProcess[str]":
        environment = self._environment() | variables
        return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)

    def _environment(self) -> dict[str, str]:
        given = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
        return {**os.environ, **self.slurm.environment, **given}

    def _check(self, line: str, *done: "subprocess.CompletedProcess[str]") -> None:
        self.wrong += [f"{line}: {each.returncode} {each.stderr[-1500:]}" for each in done if each.returncode]

    def _await_steps(self) -> None:
        log, deadline = self.folder / "mine" / "logs" / "rank_00000.log", time.monotonic() + 300
        while not (log.exists() and "stage2  step " in log.read_text()):
            assert time.monotonic() < deadline, self.slurm.job(self.job)
            time.sleep(0.1)

    def _ended(self, job: int, state: str) -> None:
        ended = self.slurm.await_state(job, OVER, 400)
        if ended["JobState"] != state:
            self.wrong.append(f"job {job} is {ended['JobState']}, {ended['ExitCode']}")
