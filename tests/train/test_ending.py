"""Which verdict a stuck job leaves: another try, as long as that comes further than the last."""

import json
from pathlib import Path

from train.ending import conclude, read_ending


def verdict(run_dir: Path) -> str:
    ending = read_ending(run_dir)
    assert ending is not None
    return ending.verdict


def saved(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step_{step:08d}.{step:08x}"
    folder.mkdir(parents=True)
    (folder / "COMMIT").touch()


def test_a_stuck_run_is_tried_again_once_for_each_checkpoint(tmp_path: Path) -> None:
    conclude(tmp_path, "stuck", "rank 3 has stalled", 1)
    assert verdict(tmp_path) == "failed", "there is nothing to go on from"
    saved(tmp_path, 2)
    conclude(tmp_path, "stuck", "rank 3 has stalled", 3)
    assert verdict(tmp_path) == "again"
    conclude(tmp_path, "failed", "a fault after it", 3)
    assert verdict(tmp_path) == "again", "what was said stands"
    (tmp_path / "verdict.json").unlink()  # the next start
    conclude(tmp_path, "stuck", "rank 3 has stalled", 3)
    ending = read_ending(tmp_path)
    assert ending is not None and ending.verdict == "failed" and "is left alone" in ending.reason
    saved(tmp_path, 4)
    conclude(tmp_path, "stuck", "rank 0 has stalled", 5)
    assert verdict(tmp_path) == "again"
    stalls = [json.loads(line)["commit"] for line in (tmp_path / "faults" / "stalls.jsonl").open()]
    assert stalls == [None, *["step_00000002.00000002"] * 2, "step_00000004.00000004"]
