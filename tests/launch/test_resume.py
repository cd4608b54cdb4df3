"""What `triptych resume` starts, and which overrides it refuses."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.checkout import ROOT
from launch.cli import main
from launch.resume import ResumeError, plan_resume
from model.canonical import Box
from train.checkpoint.run import save_commit
from train.config import RunConfig
from train.resolve import RecipeError, compose, to_yaml

# Tuning a recipe is not to break these tests: what they compare with is set here.
PINNED = [
    "stage.steps=600",
    "log.every_steps=10",
    "stage.learning_rates.vision=0.0015",
    "data.window=512",
    "data.rows_per_step=4",
    "model.vision.depth=4",
    "optimizer.weight_decay=0.05",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run = replace(compose("quickstart_stage2", PINNED), run_dir=str(folder))
    for step in (3, 7):
        save(run, step)
    return folder


def save(run: RunConfig, step: int) -> Path:
    weight = {"w": torch.zeros(2)}
    boxes = {"w": Box(name="w", global_shape=(2,), offset=(0,), shape=(2,))}
    return save_commit(run.run_dir, step, weight, boxes, None, {"world_size": 2}, to_yaml(run), keep=9)


def test_it_goes_on_from_the_newest_commit_on_as_many_processes(run_dir: Path) -> None:
    resume = plan_resume(run_dir)
    assert resume.commit.step == 7
    assert resume.processes == 2
    assert resume.run.resume is True
    assert resume.arguments == ["--config-path", str(resume.commit.path), "--config-name", "recipe", "resume=true"]


def test_a_broken_newest_commit_is_passed_over_and_told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(replace(compose("quickstart_stage2", PINNED), run_dir=str(run_dir)), 9)
    (path / "recipe.yaml").write_text("broken")
    assert plan_resume(run_dir).commit.step == 7
    assert path.name in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        ["stop_after_steps=20"],
        ["log.every_steps=1", "checkpoint.keep=5"],
        ["parallel.tensor=2"],
        ["parallel=tp2"],
        ["data.prefetch_steps=4", "data.video.cache_dir=null"],
        ["data.oss.region=cn-beijing", "data.oss.limiter.start=0.5"],
    ],
)
def test_where_and_how_fast_a_run_goes_may_change(run_dir: Path, overrides: list[str]) -> None:
    assert plan_resume(run_dir, overrides).run.resume


def test_a_group_of_the_recipes_replaces_the_saved_one(run_dir: Path) -> None:
    run = plan_resume(run_dir, ["parallel=tp2_pp2"], processes=4).run
    assert (run.parallel.tensor, run.parallel.pipeline, run.parallel.sequence_parallel) == (2, 2, True)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=5", "seed: 0 -> 5"),
        ("data.window=99", "data.window: 512 -> 99"),
        ("data.rows_per_step=8", "data.rows_per_step: 4 -> 8"),
        ("model.vision.depth=2", "model.vision.depth: 4 -> 2"),
        ("stage.steps=9999", "stage.steps: 600 -> 9999"),
        ("stage.learning_rates.vision=1.0", "stage.learning_rates.vision: 0.0015 -> 1.0"),
        ("optimizer.weight_decay=0.0", "optimizer.weight_decay: 0.05 -> 0.0"),
        ("precision=bf16", "precision: fp32 -> bf16"),
        ("model=tiny_text", "model.vision"),
    ],
)
def test_what_is_learned_may_not_change_unnoticed(run_dir: Path, override: str, told: str) -> None:
    extra = ["stage.trainable=[language]", "~stage.learning_rates.vision", "~stage.learning_rates.merger"]
    overrides = [override, *(extra if override.startswith("model=") else [])]
    with pytest.raises(ResumeError) as caught:
        plan_resume(run_dir, overrides)
    assert told in str(caught.value)
    assert "--allow" in str(caught.value)
    if override.startswith("data."):
        with pytest.raises(ResumeError, match="even --allow cannot"):
            plan_resume(run_dir, overrides, allow=True)
    else:
        assert plan_resume(run_dir, overrides, allow=True).run.resume


def test_an_override_that_cannot_be_run_is_refused_as_in_training(run_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"parallel\.tensor=3"):
        plan_resume(run_dir, ["parallel.tensor=3"], processes=3)


def test_a_moved_run_goes_on_where_it_is_now(run_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(run_dir)
    assert plan_resume(moved).run.run_dir == str(run_dir)
    save(replace(compose("quickstart_stage2", PINNED), run_dir=str(tmp_path / "elsewhere")), 1)
    for name in ("here", "it's a=b, (1)"):
        (tmp_path / "elsewhere").rename(tmp_path / name)
        assert plan_resume(tmp_path / name).run.run_dir == str((tmp_path / name).resolve())
        (tmp_path / name).rename(tmp_path / "elsewhere")


def test_a_layout_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    run = compose("quickstart_stage2", ["parallel=tp2_pp2", "parallel.split=[1,3]"])
    save(replace(run, run_dir=str(tmp_path)), 1)
    for layout in ("single", "pp2", "tp2"):
        parallel = plan_resume(tmp_path, [f"parallel={layout}"]).run.parallel
        assert parallel == compose("quickstart_stage2", [f"parallel={layout}"]).parallel


def test_print_shows_changes_and_command_and_starts_nothing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*overrides: str) -> list[str]:
        with pytest.raises(SystemExit) as left:
            main(["resume", str(run_dir), "--print", *overrides])
        assert left.value.code == 0
        return capsys.readouterr().out.splitlines()

    commit = plan_resume(run_dir).commit.path
    first, *changes, command = lines("log.every_steps=3", "parallel=tp2")
    assert first.startswith(f"going on after step 7, from {commit} of 20")
    assert {"  log.every_steps: 10 -> 3", "  parallel.tensor: 1 -> 2"} <= set(changes)
    assert not any("learning_rates" in line or "resume" in line for line in changes)
    words = shlex.split(command)
    assert words[:4] == ["NPROC_PER_NODE=2", "launch/torchrun.sh", "--config-path", str(commit)]
    assert {"log.every_steps=3", "+parallel=tp2", "resume=true"} < set(words[6:])
    assert lines()[1] == "  nothing changes against the saved recipe"


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["resume", str(tmp_path)])
    assert left.value.code == 2
    assert "no checkpoint that can be used" in capsys.readouterr().err
    assert (ROOT / "launch" / "torchrun.sh").is_file()
