"""Real runs on two ranks whose folders are lost go on from what was uploaded, and all end alike."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data.store.config import OssConfig
from launch.cli import main
from launch.jobs.resume import plan_resume
from parallel.config import ParallelConfig
from tests.harness.lives import with_environment
from tests.harness.oss_service import oss_service
from tests.harness.run_faults import well
from tests.harness.runs import STEPS, compare_runs, make_data, read_recipe, write_recipe
from tests.prove.context import Worlds
from tests.train.uploaded import ADDRESS, oss_of
from train.checkpoint.commits import attempts, step_of
from train.config import CheckpointConfig, RunConfig


@pytest.mark.timeout(500)
def test_a_run_of_which_nothing_is_left_goes_on_bit_for_bit(tmp_path: Path, worlds: Worlds) -> None:
    data = make_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe", data, "stage2", ParallelConfig(), processes=2)
    with oss_service() as (service, _):
        run = _uploading(read_recipe(recipe), replace(oss_of(service, tmp_path), deadline_seconds=60.0))
        first, second, third = (tmp_path / name for name in ("first", "second", "third"))
        known = {"before": with_environment, "given": (service.environment,)}
        well(worlds.nursery.live(replace(run, run_dir=str(first), stop_after_steps=3), 2, **known))
        assert _sealed(service.names()) == [3] and (first / "upload.json").exists()
        saves = [json.loads(line) for line in (first / "saves.jsonl").read_text().splitlines()]
        assert [(row["step"], row["fault"], "upload_bytes" in row) for row in saves] == [
            (3, None, False),
            (3, None, True),
        ]
        assert saves[1]["upload_bytes"] > 1e6 and saves[1]["upload_seconds"] > 0

        # The whole folder is gone: one command.
        first.rename(tmp_path / "elsewhere")
        oss = ["--oss", f"endpoint={service.endpoint}", f"limiter.folder={tmp_path}/limits"]
        with pytest.raises(SystemExit) as left:
            main(["resume", ADDRESS, "--run-dir", str(second), *oss, "--print"])
        assert left.value.code == 0 and [attempt.step for attempt in attempts(second)] == [3]
        shutil.rmtree(second / "checkpoints")
        # Only the checkpoints are gone: the folder says where they are.
        well(worlds.nursery.live(plan_resume(second, processes=2).run, 2, **known))
        assert _sealed(service.names()) == [3, STEPS]

        # The newest in the bucket is damaged; rank 0 says so and fetches the one before, the other rank waits.
        newest = max(name for name in service.names() if name.endswith("/language.00001.safetensors"))
        service.put(newest, service.get(newest)[:-1] + b"\1")
        well(worlds.nursery.live(replace(run, run_dir=str(third)), 2, resume=True, **known))
        assert [attempt.step for attempt in attempts(third)] == [STEPS, 3]
        assert _sealed(service.names()) == [3, STEPS], "the damaged one was left behind"
    difference = compare_runs(second, third)
    assert difference.steps == STEPS - 3 and difference.tensors > 200
    assert difference.weights == difference.state == difference.rows == difference.curves == 0, difference
    assert not any("not-a-real-secret" in text for text in _texts(tmp_path))


def _uploading(run: RunConfig, oss: OssConfig) -> RunConfig:
    checkpoint = CheckpointConfig(upload=ADDRESS, transfer_seconds=120.0)
    return replace(run, data=replace(run.data, oss=oss), checkpoint=checkpoint)


def _sealed(names: list[str]) -> list[int | None]:
    return [step_of(name.split("/")[1]) for name in names if name.endswith("/COMMIT")]


def _texts(folder: Path) -> list[str]:
    kinds = (".json", ".jsonl", ".yaml")
    return [file.read_text() for file in folder.rglob("*") if file.suffix in kinds and file.is_file()]
