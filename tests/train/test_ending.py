"""Which verdict a stuck job leaves: another try, as long as that comes further than the last."""

import json
from pathlib import Path

from train.ending import clear_ending, conclude, read_ending


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
    clear_ending(tmp_path)  # the next start
    saved(tmp_path, 2)
    conclude(tmp_path, "stuck", "rank 3 has stalled", 3)
    assert verdict(tmp_path) == "again"
    conclude(tmp_path, "failed", "a fault after it", 3)
    assert verdict(tmp_path) == "again", "what was said stands"
    clear_ending(tmp_path)
    conclude(tmp_path, "stuck", "rank 3 has stalled", 3)
    ending = read_ending(tmp_path)
    assert ending is not None and ending.verdict == "failed" and "is left alone" in ending.reason
    clear_ending(tmp_path)
    saved(tmp_path, 4)
    conclude(tmp_path, "stuck", "rank 0 has stalled", 5)
    assert verdict(tmp_path) == "again"
    stalls = [json.loads(line)["commit"] for line in (tmp_path / "faults" / "stalls.jsonl").open()]
    assert stalls == [None, *["step_00000002.00000002"] * 2, "step_00000004.00000004"]


def test_how_often_it_was_stuck_is_told_apart_from_a_request(tmp_path: Path) -> None:
    counts = []
    for step in (0, 0, 2, 2, 4):
        clear_ending(tmp_path)
        if step and not (tmp_path / "checkpoints" / f"step_{step:08d}.{step:08x}").exists():
            saved(tmp_path, step)
        conclude(tmp_path, "stuck", "rank 3 has stalled", step)
        conclude(tmp_path, "asked", "SIGTERM, of a torchrun whose other node left first", step)
        ending = read_ending(tmp_path)
        assert ending is not None
        counts.append((ending.stuck, ending.verdict))
    assert counts == [(1, "failed"), (2, "failed"), (1, "again"), (2, "failed"), (1, "again")]
    clear_ending(tmp_path)
    conclude(tmp_path, "asked", "SIGTERM", 5)
    ending = read_ending(tmp_path)
    assert ending is not None and (ending.verdict, ending.stuck) == ("again", 0)


def test_a_damaged_line_costs_no_verdict(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    stalls = tmp_path / "faults" / "stalls.jsonl"
    stalls.parent.mkdir()
    stalls.write_bytes(b'[1]\n\xff\n{"commit": "step_00000002.0000')  # the host was lost while it wrote
    for due in ("again", "failed"):
        clear_ending(tmp_path)
        conclude(tmp_path, "stuck", "rank 3 has stalled", 3)
        assert verdict(tmp_path) == due
