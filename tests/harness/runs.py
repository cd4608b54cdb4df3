"""Real runs on tiny shards: the launch script, torchrun, `python -m train`, several processes."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from data.config import DataConfig, SourceConfig
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.types import RawSample
from model.config import ModelConfig
from parallel.config import ParallelConfig
from tests.data.conftest import IMAGE, VIDEO, clip_bytes, make_samples, train_tokenizer
from tests.harness.faulty import Fault
from tests.harness.layouts import MODEL, STAGES
from train.checkpoint.load import find_commit, read_tensors
from train.config import CheckpointConfig, InitConfig, LogConfig, OptimizerConfig, RunConfig, StageConfig
from train.resolve import from_yaml, to_yaml

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
IMPATIENT_SECONDS = 3.0
"""Signals so far apart are not those of one request."""
VOCABULARY = 431
"""Odd, so that two tensor ranks hold padding rows."""


def make_data(folder: Path, num_samples: int = 40, samples: Iterable[RawSample] | None = None) -> Path:
    """A tokenizer and one indexed source under `folder`: text, pictures, conversations and clips, unless given."""
    train_tokenizer(folder / "tokenizer")
    samples = make_samples(num_samples, clip_bytes()) if samples is None else samples
    write_shards(folder / "mixed", "mixed", samples, samples_per_shard=12)
    build_index(folder / "mixed", load_tokenizer(folder / "tokenizer"))
    return folder


def data_config(folder: Path) -> DataConfig:
    """Rows of a few samples each, read from what `make_data` wrote."""
    return DataConfig(
        tokenizer=str(folder / "tokenizer"),
        sources=(SourceConfig(name="mixed", path=str(folder / "mixed")),),
        tokens_per_row=160,
        patches_per_row=400,
        rows_per_step=4,
        window=16,
        seed=3,
        image=IMAGE,
        video=VIDEO,
        workers=0,  # faults are planted in the trainer's own process
    )


def model_config() -> ModelConfig:
    """The layout proof's model with the vocabulary of the data."""
    return replace(MODEL, language=replace(MODEL.language, vocab_size=VOCABULARY))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A saved recipe that the launch script can start."""

    folder: Path
    name: str
    processes: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.yaml"


def write_recipe(
    folder: Path, data: Path, stage: str, parallel: ParallelConfig, processes: int, precision: str = "fp32"
) -> Recipe:
    """One training stage of `STEPS` steps with warm-up and a falling rate."""
    run = RunConfig(
        run_dir=str(folder / "unused"),
        precision=precision,  # type: ignore[arg-type]
        model=model_config(),
        data=data_config(data),
        parallel=replace(parallel, timeout_seconds=120.0),
        stage=StageConfig(
            name=stage,
            trainable=STAGES[stage],
            learning_rates=dict.fromkeys(STAGES[stage], 1e-3),
            steps=STEPS,
            warmup=0.3,
        ),
        optimizer=OptimizerConfig(),
        init=InitConfig(),
        checkpoint=CheckpointConfig(),
        log=LogConfig(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{stage}_{precision}"
    (folder / f"{name}.yaml").write_text(to_yaml(run))
    return Recipe(folder=folder, name=name, processes=processes)


def read_recipe(recipe: Recipe) -> RunConfig:
    """What the launch script will read."""
    return from_yaml(recipe.path.read_text())


def launch(
    recipe: Recipe,
    run_dir: Path,
    *overrides: str,
    plant: str | None = None,
    interpreter: str | None = None,
    timeout: float = 240.0,
) -> None:
    """Run to the end; AssertionError with what was printed if the run fails or takes too long.

    Args:
        plant: a defect that every training process plants in itself first.
        interpreter: a module and its arguments by which training processes are started, in the place of `plant`.
    """
    command = ["launch/torchrun.sh", "--config-path", str(recipe.folder), "--config-name", recipe.name]
    _run([*command, f"run_dir={run_dir}", *overrides], recipe, interpreter or _planted(plant), timeout)


def resume(recipe: Recipe, run_dir: Path, *overrides: str, plant: str | None = None, timeout: float = 240.0) -> None:
    """`triptych resume`, as a user goes on with a run; otherwise like `launch`."""
    command = [sys.executable, "-m", "launch.cli", "resume", str(run_dir), *overrides]
    _run(command, recipe, _planted(plant), timeout)


def _planted(plant: str | None) -> str | None:
    return f"-m tests.prove.planted {plant}" if plant is not None else None


def _run(command: list[str], recipe: Recipe, interpreter: str | None, timeout: float) -> None:
    process = _start(command, recipe, interpreter)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"no end after {timeout:.0f} s: {' '.join(command)}\n{output[-4000:]}") from None
    assert process.returncode == 0, f"exit code {process.returncode}: {' '.join(command)}\n{output[-4000:]}"


def _start(command: list[str], recipe: Recipe, interpreter: str | None, **environment: str) -> "subprocess.Popen[str]":
    """Start a run whose workers torchrun starts by `python -u INTERPRETER ...` if that is given."""
    environment = dict(os.environ, NPROC_PER_NODE=str(recipe.processes), PYTHON=sys.executable) | environment
    environment |= {"OMP_NUM_THREADS": "1"}
    if interpreter is not None:
        path = recipe.folder / f"python_{hashlib.blake2b(interpreter.encode(), digest_size=8).hexdigest()}"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -u {interpreter} "$@"\n')
        path.chmod(0o755)
        environment["PYTHON_EXEC"] = str(path)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run in which a fault was planted, after its end."""

    output: str
    code: int
    seconds: float
    """From the fault to the end of the last process."""
    left_over: tuple[int, ...]
    """Processes that had to be ended from outside."""


def fail(
    recipe: Recipe, run_dir: Path, fault: Fault, *overrides: str, plant: str | None = None, timeout: float = 120.0
) -> Ended:
    """Run into a fault (tests/harness/faulty.py), and see how the run ends; AssertionError if the fault never came."""
    mark = uuid.uuid4().hex
    moment = recipe.folder / f"moment_{mark}"
    command = ["launch/torchrun.sh", "--config-path", str(recipe.folder), "--config-name", recipe.name]
    interpreter = f"-m tests.harness.faulty '{replace(fault, moment=str(moment)).to_json()}' {plant or '-'}"
    process = _start([*command, f"run_dir={run_dir}", *overrides], recipe, interpreter, TRIPTYCH_TEST_RUN=mark)
    try:
        if fault.kind in ("ask", "orphan"):
            _wait_for(moment, process, timeout)
            process.send_signal(signal.SIGTERM if fault.kind == "ask" else signal.SIGKILL)
            if fault.kind == "ask":  # a run that trains ends in order at the first (tests/harness/asked.py)
                time.sleep(IMPATIENT_SECONDS)
                process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=timeout)
        ended = time.time()
    except subprocess.TimeoutExpired:
        ended = math.inf
    left_over = _marked(mark)
    for pid in left_over:
        os.kill(pid, 9)
    if ended == math.inf:
        output, _ = process.communicate()
    assert moment.exists(), f"the fault never came: {output[-4000:]}"
    return Ended(
        output=output,
        code=process.returncode,
        seconds=ended - float(moment.read_text()),
        left_over=left_over,
    )


def _wait_for(path: Path, process: "subprocess.Popen[str]", timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def _marked(mark: str) -> tuple[int, ...]:
    """Living processes that have `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class RunDifference:
    """How two finished runs differ; everything counts single bits."""

    weights: int
    """Tensors."""
    state: int
    """Masters and moments, tensors."""
    rows: int
    """Steps that trained on other samples."""
    curves: int
    """Steps with another loss, norm or rate."""
    tensors: int
    """Compared in all."""
    steps: int


def compare_runs(one: Path, other: Path) -> RunDifference:
    """Compare last checkpoints and metrics. AssertionError if they do not hold the same names and steps."""
    left, right = (read_tensors(find_commit(path).path) for path in (one, other))
    assert left.names() == right.names()
    wrong = [name for name in left.names() if not _same_bits(left.read(name), right.read(name))]
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (one, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]], "steps differ"
    pairs = list(zip(*lines, strict=True))
    return RunDifference(
        weights=sum(not name.startswith("optimizer.") for name in wrong),
        state=sum(name.startswith("optimizer.") for name in wrong),
        rows=sum(a["rows"] != b["rows"] for a, b in pairs),
        curves=sum(any(a[key] != b[key] for key in ("loss", "grad_norm", "rates", "tokens")) for a, b in pairs),
        tensors=len(left.names()),
        steps=len(pairs),
    )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
