"""Lives of a run: worlds of the real trainer, forked from a server and killed at will.

A start by torchrun costs ten seconds of imports; a life costs one or two. What torchrun does for a job is done here:
the job's store outlives its ranks, and when one rank has ended badly the others are ended as well.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from parallel.config import ParallelConfig
from parallel.verdict import AGAIN_CODE
from parallel.watch import Watch
from parallel.world import distributed
from tests.harness.compare import tensor_errors
from tests.harness.layouts import STAGES
from tests.harness.runs import data_config, model_config
from tests.harness.server import forget_the_server, fork_context
from tests.prove.planting import replace_name
from train import step as train_steps
from train.checkpoint.load import find_commit, read_tensors
from train.config import CheckpointConfig, InitConfig, LogConfig, OptimizerConfig, RunConfig, StageConfig
from train.ending import conclude
from train.faults import MENDABLE
from train.resolve import from_yaml, to_yaml
from train.trainer import Trainer

LONGEST = 180.0
"""Seconds; a life that takes longer hangs."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """How the processes of one start of a run ended."""

    codes: tuple[int | None, ...]
    """By rank; negative is a signal, None what had to be killed after LONGEST."""
    said: str
    """By all ranks."""

    @property
    def ended_well(self) -> bool:
        return all(code == 0 for code in self.codes)


def run_config(
    run_dir: Path, data: Path, stage: str, parallel: ParallelConfig, *, steps: int, tie_embeddings: bool = True
) -> RunConfig:
    """A stage of the tiny model in fp32 with warm-up and a falling rate, saved after each step.

    eps and rate are those of the layout proofs: with 1e-8 rounding decides the sign of an update of almost nothing.
    """
    model = model_config()
    return RunConfig(
        run_dir=str(run_dir),
        precision="fp32",
        model=replace(model, language=replace(model.language, tie_embeddings=tie_embeddings)),
        data=data_config(data),
        parallel=replace(parallel, timeout_seconds=30.0),
        stage=StageConfig(
            name=stage,
            trainable=STAGES[stage],
            learning_rates=dict.fromkeys(STAGES[stage], 1e-4),
            steps=steps,
            warmup=0.3,
        ),
        optimizer=OptimizerConfig(eps=1e-6),
        init=InitConfig(),
        checkpoint=CheckpointConfig(every_steps=1),
        log=LogConfig(),
    )


class Nursery:
    """Starts lives, from tests/harness/server.py."""

    def __init__(self) -> None:
        self._context = fork_context()
        self._count = 0

    def live(
        self,
        run: RunConfig,
        processes: int,
        *,
        before: Callable[..., object] | None = None,
        given: Sequence[Any] = (),
        until: Callable[[], bool] | None = None,
        plant: str | None = None,
        resume: bool | None = None,
        others_get: signal.Signals = signal.SIGKILL,
    ) -> Life:
        """One start of a run, from its checkpoints if it has any, until all its processes have gone.

        Args:
            before: called with (rank, *given) in each process before it trains; importable.
            until: asked again and again; once it says so every process gets SIGKILL.
            plant: a defect that every process plants in itself first.
            resume: None is whether there is a checkpoint in the run's folder.
            others_get: once one process has ended badly. torchrun sends SIGTERM, and what they say then takes seconds.
        """
        self._count += 1
        said = Path(run.run_dir).with_name(f"{Path(run.run_dir).name}.said.{self._count}")
        said.parent.mkdir(parents=True, exist_ok=True)
        if resume is None:
            resume = any(Path(run.run_dir).glob("checkpoints/*/COMMIT"))
        run = replace(run, resume=resume)
        limit = timedelta(seconds=LONGEST)
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
        shared = (processes, store.port, to_yaml(run), str(said), plant, before, tuple(given))
        ranks = [self._context.Process(target=_live, args=(rank, *shared)) for rank in range(processes)]
        for rank in ranks:
            rank.start()
        try:
            codes = _await(ranks, until, others_get)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        return Life(codes=codes, said=said.read_text(errors="replace") if said.exists() else "")


def _await(
    ranks: Sequence[ForkServerProcess], until: Callable[[], bool] | None, others_get: signal.Signals
) -> tuple[int | None, ...]:
    began, told, in_order = time.monotonic(), False, 0
    while any(rank.is_alive() for rank in ranks) and time.monotonic() - began < LONGEST:
        time.sleep(0.01)
        if until is not None and until():
            for rank in ranks:
                rank.kill()
        codes = {rank.exitcode for rank in ranks} - {None, 0}
        in_order += codes == {AGAIN_CODE}  # the others are on their way out as well, and a busy host takes its time
        if not told and codes and not 0 < in_order < 1000:
            told = True
            for rank in ranks:
                if rank.is_alive() and rank.pid is not None:
                    with suppress(ProcessLookupError):  # it has ended since
                        os.kill(rank.pid, others_get)
    return tuple(rank.exitcode for rank in ranks)


def _live(
    rank: int,
    processes: int,
    port: int,
    recipe: str,
    said: str,
    plant: str | None,
    before: Callable[..., object] | None,
    given: tuple[Any, ...],
) -> None:
    forget_the_server()
    os.setsid()  # as torchrun does, so that what ends a rank ends its decoders
    with open(said, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    if plant is not None:
        from tests.prove.plants import PLANTS  # every defect's module, which few lives need

        PLANTS[plant].apply()
    if before is not None:
        before(rank, *given)
    run = from_yaml(recipe)
    with (
        Watch(run.parallel, run.run_dir, MENDABLE, partial(conclude, run.run_dir)) as watch,
        distributed(run.parallel, run.seed) as groups,
        watch.telling(),
    ):
        Trainer(run, groups, watch).fit()


def kill_in_step(rank: int, killed_rank: int, step: int) -> None:
    """Have a rank killed in the middle of a step: its rows are read, and nothing of it is saved."""

    def make(real: Callable[..., Any]) -> Callable[..., Any]:
        def forward_backward(parts: Any, *rest: Any, **named: Any) -> Any:
            if parts.schedule.board.read().step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(parts, *rest, **named)

        return forward_backward

    if rank == killed_rank:
        replace_name(train_steps, "forward_backward", make)


def with_environment(rank: int, values: dict[str, str]) -> None:
    """Have variables that the server did not have when it was started."""
    os.environ |= values


def mark_training(rank: int, mark: str) -> None:
    """Have `mark` appear when the first step begins."""

    def make(real: Callable[..., Any]) -> Callable[..., Any]:
        def fit(self: Any) -> None:
            Path(mark).touch()
            real(self)

        return fit

    replace_name(Trainer, "fit", make)


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two finished runs of other layouts are apart, from the `since`-th step on. Largest relative errors."""

    loss: float
    norm: float
    weight: float
    rows: int
    """Steps that trained on other samples."""

    @property
    def largest(self) -> float:
        return max(self.loss, self.norm, self.weight)


def apart(one: Path, other: Path, since: int = 0) -> Apart:
    """Compare metrics, and the last checkpoints tensor by tensor. AssertionError if they hold other names or steps."""
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (one, other)]
    steps = [[line["step"] for line in found if line["step"] > since] for found in lines]
    assert steps[0] == steps[1] and steps[0], f"steps differ: {steps}"
    pairs = list(zip(*(found[-len(steps[0]) :] for found in lines), strict=True))
    readers = [read_tensors(find_commit(path).path) for path in (one, other)]
    whole = [
        {name: reader.read(name).float().numpy() for name in reader.names() if not name.startswith("optimizer.")}
        for reader in readers
    ]
    return Apart(
        loss=max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs),
        norm=max(abs(a["grad_norm"] - b["grad_norm"]) / abs(a["grad_norm"]) for a, b in pairs),
        weight=max(tensor_errors(whole[0], whole[1], floor=0.0).values()),
        rows=sum(a["rows"] != b["rows"] for a, b in pairs),
    )
