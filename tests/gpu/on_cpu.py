"""The reference run of test_cuda.py, in a process that sees no GPU; its record goes to stdout, pickled."""

import os
import pickle
import sys

from parallel.config import ParallelConfig
from parallel.world import joined_world
from tests.harness.layouts import train_on_layout

if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print to stdout
    with joined_world(120.0):
        record = train_on_layout(ParallelConfig(), "stage2")
    sys.stdout.flush()
    with os.fdopen(out, "wb") as pipe:
        pickle.dump([record], pipe)
