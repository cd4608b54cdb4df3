"""A real run of two ranks, one of which hangs in a write of a checkpoint."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness import save_faults
from tests.harness.run_faults import fault_run
from tests.harness.runs import make_data
from tests.prove.context import Worlds
from tests.prove.planting import replace_name
from train.checkpoint.load import find_commit
from train.checkpoint.save import Saver

PLACE = "fsync vision.00001.safetensors"
AGAIN = 75


def hang_and_ask(rank: int, met: str) -> None:
    """Rank 1 hangs in the save of step 2; once the next save waits for it, rank 0 is asked to end."""
    save_faults.strike(rank, 1, PLACE, "hang", met)

    asked = threading.Event()

    def make(wait: Callable[..., None]) -> Callable[..., None]:
        def ask(self: Saver, *given: Any) -> None:
            current = self._current
            if current is not None and current.contents.step == save_faults.STRUCK_STEP and not asked.is_set():
                asked.set()
                while not Path(met).exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGUSR1)
            wait(self, *given)

        return ask

    if rank == 0:
        replace_name(Saver, "_wait", make)


# The save of step 3 waits for that of step 2; it is the last one, or there are steps after it.
@pytest.mark.parametrize(("steps", "said"), [(3, "step 3 could not be saved"), (6, "nothing more was saved")])
@pytest.mark.timeout(250)
def test_a_run_that_waits_for_a_save_ends_in_order_within_its_grace(
    steps: int, said: str, worlds: Worlds, tmp_path: Path
) -> None:
    run, met = fault_run(tmp_path / "run", make_data(tmp_path / "data")), tmp_path / "met"
    run = replace(run, checkpoint=replace(run.checkpoint, commit_seconds=70.0, grace_seconds=4.0))
    run = replace(run, stage=replace(run.stage, steps=steps), parallel=replace(run.parallel, timeout_seconds=20.0))
    life = worlds.nursery.live(run, 2, before=hang_and_ask, given=(str(met),))
    took = time.time() - met.stat().st_mtime
    assert life.codes == (AGAIN, AGAIN) and said in life.said, life.said
    assert "it was still being written when the run had to end" in life.said
    assert find_commit(run.run_dir, tell=lambda _: None).step == 1
    assert took < 60, life.said
