"""A run whose newest checkpoint, the first of a new segment of the plan, is damaged: it goes on from the one before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launch.jobs.resume import plan_resume
from parallel.config import ParallelConfig
from tests.harness.lives import Nursery, apart, run_config
from tests.harness.run_faults import well
from train.checkpoint.commits import attempts, open_commit
from train.config import RunConfig

STEPS, CUT = 4, 2


def gone_on(
    nursery: Nursery, folder: Path, data: Path, faults: Callable[[RunConfig], list[str]]
) -> tuple[list[str], float]:
    """(what the look before the start has against it, loss, norm and weights at the end from those of a run that never
    changed its data, the largest error; 1 where it was refused).

    Args:
        faults: that look.
    """
    whole = run_config(folder / "whole", data, "stage2", ParallelConfig(), steps=STEPS)
    well(nursery.live(whole, 1))
    run_dir = folder / "changed"
    well(nursery.live(replace(whole, run_dir=str(run_dir), stop_after_steps=CUT), 1))
    changed = plan_resume(run_dir, ["data.window=12", f"stop_after_steps={CUT + 1}"], allow=["data.window"])
    well(nursery.live(changed.run, 1))
    newest = open_commit(attempts(run_dir)[0].path)
    assert newest.step == CUT + 1 and len(newest.state["segments"]) == 2
    flip_last_bit(max(newest.path.glob("optimizer.*")))
    again = plan_resume(run_dir)
    assert again.commit.step == CUT
    if refused := faults(again.run):
        return refused, 1.0
    well(nursery.live(again.run, 1))
    return [], apart(Path(whole.run_dir), run_dir, since=CUT).largest


def flip_last_bit(path: Path) -> None:
    """Of a file, which stays as long as it is."""
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
