"""The order in which a pipeline stage really computes, to hold the simulated one against."""

from typing import Any

import torch

from launch.planning import timeline
from launch.planning.timeline import Pass
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, start
from tests.harness.rows import random_step
from train.state import TrainState
from train.step import train_step


def pass_order(parallel: ParallelConfig, microbatches: int, stage: str = "stage2") -> tuple[list[Pass], list[Pass]]:
    """Passes of this rank in one real step, by hooks on its chunks and on what they give; and the simulated ones."""
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        steps = [random_step(3, microbatches, MODEL.language.vocab_size)]
        made = start(parallel, stage, groups, steps=steps)
        fetch = made.parts.batches.next
        seen: list[Pass] = []
        numbers: dict[int, int] = {}

        def fetch_and_number() -> Any:
            plan, announced = fetch()
            numbers.update({id(row): number for number, row in enumerate(announced.rows)})
            return plan, announced

        def watch(chunk: int) -> Any:
            def forward(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
                done = Pass(microbatch=numbers[id(inputs[0])], chunk=chunk)
                seen.append(done)
                back = Pass(microbatch=done.microbatch, chunk=chunk, backward=True)
                output.register_hook(lambda _: seen.append(back))

            return forward

        for number, chunk in enumerate(made.built.module.chunks):
            chunk.register_forward_hook(watch(number))
        made.parts.batches.next = fetch_and_number  # type: ignore[method-assign]
        train_step(made.parts, TrainState())
        made.optimizer.close()
        # Looked up at the call: a planted defect replaces it.
        return seen, timeline.passes(groups.pp_rank, parallel.pipeline, parallel.chunks, microbatches)
