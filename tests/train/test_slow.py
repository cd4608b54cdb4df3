"""A run in which one rank is slow names it."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.vlm import ModelChunk
from parallel.config import ParallelConfig
from tests.harness.lives import run_config
from tests.harness.runs import make_data
from tests.prove.context import Worlds
from tests.prove.planting import replace_name


def slow_forward(rank: int, slow_rank: int, seconds: float) -> None:
    """Have one rank take longer over each microbatch."""

    def make(forward: Callable[..., Any]) -> Callable[..., Any]:
        def planted(*arguments: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return forward(*arguments, **named)

        return planted

    if rank == slow_rank:
        replace_name(ModelChunk, "forward", make)


def test_a_slow_rank_is_named(tmp_path: Path, worlds: Worlds) -> None:
    run = run_config(tmp_path / "run", make_data(tmp_path / "data"), "stage2", ParallelConfig(), steps=10)
    run = replace(
        run,
        parallel=replace(run.parallel, timeout_seconds=20.0),
        checkpoint=replace(run.checkpoint, every_steps=None),
        log=replace(run.log, every_steps=1),
    )
    life = worlds.nursery.live(run, 2, before=slow_forward, given=(1, 0.25))
    assert life.ended_well, life.said
    found = [json.loads(line) for line in (tmp_path / "run" / "stragglers.jsonl").open()]
    # A busy host may slow something else for a moment as well.
    assert ([1], "forward") in [(line["ranks"], line["work"]) for line in found], life.said
    assert "rank 1 held the others up in forward" in life.said
