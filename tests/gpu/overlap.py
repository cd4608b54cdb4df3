"""One process of two of test_cuda.py: steps on a tensor axis with hidden messages and without, which must agree."""

import sys

import torch

from parallel.config import KernelConfig, ParallelConfig
from parallel.world import joined_world
from tests.harness.layouts import train_on_layout

if __name__ == "__main__":
    torch.backends.cuda.matmul.allow_tf32 = False
    records = []
    with joined_world(120.0):
        for overlap in (True, False):
            kernels = KernelConfig(overlap_tensor=overlap)
            parallel = ParallelConfig(tensor=2, sequence_parallel=sys.argv[1] == "1", kernels=kernels)
            records.append(train_on_layout(parallel, "stage2"))
    hidden, waited = records
    for a, b in zip(hidden.weights, waited.weights, strict=True):
        assert abs(a.values - b.values).max() <= 1e-4 * abs(b.values).max(), a.name
    for one, other in zip(hidden.losses, waited.losses, strict=True):
        assert abs(one - other) <= 1e-5 * abs(other)
