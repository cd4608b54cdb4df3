"""What torch counts while a real step runs, and the sizes that our own count is made from."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.flops import NOTHING_AGAIN, Work, step_flops
from parallel.config import ParallelConfig, RecomputeConfig
from parallel.world import model_parallel, pick_device
from tests.harness.layouts import MODEL, STAGES, start
from tests.harness.rows import GRIDS, PATCH_DIM, pack, random_sample
from train.batches import RowForm, announce
from train.step import forward_backward

STEPS: dict[str, list[list[list[tuple[int, int, int]]]]] = {
    "one row": [[[GRIDS[0], GRIDS[2]], [GRIDS[4]], []]],
    "a row of text among rows with pictures": [[[GRIDS[0]], []], [[], [], []], [[GRIDS[3]], [GRIDS[1], GRIDS[4]]]],
}
"""The grids of each sample of each row."""


def counted_and_ours(
    stage: str, forward_only: bool, step: str = "one row", recompute: RecomputeConfig = NOTHING_AGAIN
) -> tuple[int, int]:
    """(torch's count, ours) for the rows of one step."""
    parallel = ParallelConfig(recompute=recompute)
    generator = np.random.default_rng(0)
    rows = [pack([random_sample(generator, 301, grids) for grids in row]) for row in STEPS[step]]
    with model_parallel(parallel, pick_device(), seed=0) as groups:
        made = start(parallel, stage, groups)
        form = RowForm(dtype=torch.float32, patch_dim=PATCH_DIM, multiple=1)
        announced = announce(rows, len(rows), groups, form)
        # The fused CPU kernel is not counted at all.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward_backward(made.parts, announced, announced.num_targets, forward_only=forward_only)
        made.optimizer.close()
    trainable = () if forward_only else STAGES[stage]
    ours = step_flops(MODEL, trainable, as_torch_counts(announced.work), recompute)
    return counter.get_total_flops(), ours


def as_torch_counts(work: Work) -> Work:
    """torch counts a causal square in full; ours counts the half that is needed."""
    return replace(work, token_pairs=2 * work.token_pairs, blind_pairs=2 * work.blind_pairs)
