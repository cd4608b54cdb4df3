"""Our FLOPs against what torch counts while a real step runs, part by part and stage by stage."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.flops import Work, step_flops
from parallel.config import ParallelConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, STAGES, start
from tests.harness.rows import GRIDS, PATCH_DIM, pack, random_sample
from tests.prove.context import Worlds
from train.batches import RowForm, announce
from train.step import forward_backward


def counted_and_work(stage: str, forward_only: bool) -> tuple[int, Work]:
    """torch's count for one row of three samples, and the sizes that ours is made from."""
    generator = np.random.default_rng(0)
    samples = [random_sample(generator, 301, grids) for grids in ([GRIDS[0], GRIDS[2]], [GRIDS[4]], [])]
    with model_parallel(ParallelConfig(), pick_device(), seed=0) as groups:
        made = start(ParallelConfig(), stage, groups)
        announced = announce([pack(samples)], 1, groups, RowForm(dtype=torch.float32, patch_dim=PATCH_DIM, multiple=1))
        # The fused CPU kernel is not counted at all.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward_backward(made.parts, announced, announced.num_targets, forward_only=forward_only)
        made.optimizer.close()
        # megatron-core makes rotary angles by a matrix product of three axes and head_dim / 2 frequencies.
        angles = 2 * 3 * announced.work.tokens * MODEL.language.head_dim // 2
        return counter.get_total_flops() - angles, announced.work


def as_torch_counts(work: Work) -> Work:
    """torch counts a causal square in full; ours counts the half that is needed."""
    return Work(
        tokens=work.tokens, patches=work.patches, token_pairs=2 * work.token_pairs, patch_pairs=work.patch_pairs
    )


@pytest.mark.parametrize("stage", STAGES)
def test_flops_of_a_step(stage: str, worlds: Worlds) -> None:
    ((counted, work),) = worlds.run(1, counted_and_work, stage=stage, forward_only=False)
    assert step_flops(MODEL, STAGES[stage], as_torch_counts(work)) == counted


def test_flops_of_a_forward_pass(worlds: Worlds) -> None:
    ((counted, work),) = worlds.run(1, counted_and_work, stage="stage2", forward_only=True)
    assert step_flops(MODEL, (), as_torch_counts(work)) == counted
