"""A real run of two ranks, one of which hangs in a write of a checkpoint."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import save_faults
from tests.harness.run_faults import fault_run
from tests.harness.runs import make_data
from tests.prove.context import Worlds
from train.checkpoint.load import find_commit

PLACE = "fsync vision.00001.safetensors"
AGAIN = 75


def hang_and_ask(rank: int, met: str, seconds: float) -> None:
    """Rank 1 hangs in the save of step 2; that long after, rank 0 is asked to end."""
    save_faults.strike(rank, 1, PLACE, "hang", met)

    def ask() -> None:
        while not Path(met).exists():
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGUSR1)

    if rank == 0:
        threading.Thread(target=ask, daemon=True).start()


# The save of step 3 waits for that of step 2; it is the last one, or there are steps after it.
@pytest.mark.parametrize(("steps", "said"), [(3, "step 3 could not be saved"), (6, "nothing more was saved")])
@pytest.mark.timeout(120)
def test_a_run_that_waits_for_a_save_ends_in_order_within_its_grace(
    steps: int, said: str, worlds: Worlds, tmp_path: Path
) -> None:
    run, met = fault_run(tmp_path / "run", make_data(tmp_path / "data")), tmp_path / "met"
    run = replace(run, checkpoint=replace(run.checkpoint, commit_seconds=70.0, grace_seconds=4.0))
    run = replace(run, stage=replace(run.stage, steps=steps))
    life = worlds.nursery.live(run, 2, before=hang_and_ask, given=(str(met), 1.0))
    took = time.time() - met.stat().st_mtime
    assert life.codes == (AGAIN, AGAIN) and said in life.said, life.said
    assert "it was still being written when the run had to end" in life.said
    assert find_commit(run.run_dir, tell=lambda _: None).step == 1 and took < 30, life.said
