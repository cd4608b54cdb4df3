"""What `triptych resume` starts, and which overrides it refuses."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.config import SourceConfig
from launch.checkout import ROOT
from launch.cli import main
from launch.jobs import slurm_job
from launch.jobs.resume import ResumeError, plan_resume
from launch.jobs.torchrun import recipe_of
from model.canonical import Box
from tests.harness.commits import save_commit
from train.config import RunConfig
from train.ending import write_ending
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

STATE = {"world_size": 2, "cursor": {"window": 0, "row": 0}}


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
    return save_commit(run.run_dir, step, weight, boxes, None, STATE, to_yaml(run), keep=9)


def test_it_goes_on_from_the_newest_commit_on_as_many_processes(run_dir: Path) -> None:
    resume = plan_resume(run_dir)
    assert resume.commit.step == 7
    assert resume.processes == 2
    assert resume.run.resume is True
    assert resume.arguments == ["--config-path", str(run_dir), "--config-name", "recipe", "resume=true"]


def test_a_job_in_the_queue_outlives_the_checkpoint_it_went_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As launch/train.sbatch asks: with the words of its first start, after the run has pruned on."""
    run = replace(compose("quickstart_stage2", PINNED), run_dir=str(tmp_path))
    first = save(run, 3)
    resume = plan_resume(tmp_path, ["log.every_steps=3"])
    save(run, 7)
    shutil.rmtree(first)
    write_ending(tmp_path, "again", "asked", 7)
    assert recipe_of(resume.arguments) == resume.run
    slurm_job.main(["end", *resume.arguments])
    assert capsys.readouterr().out == "again\n"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "recipe.yaml", "verdict.json"}


def test_a_broken_newest_commit_is_passed_over_and_told(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(replace(compose("quickstart_stage2", PINNED), run_dir=str(run_dir)), 9)
    (path / "recipe.yaml").write_text("broken")
    assert plan_resume(run_dir).commit.step == 7
    assert path.name in capsys.readouterr().err


def test_a_checkpoint_is_no_run_and_weights_alone_are_gone_on_from_by_another_run(
    run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResumeError, match=f"is a checkpoint and no run; say {run_dir} "):
        plan_resume(plan_resume(run_dir).commit.path)
    weight, boxes = {"w": torch.zeros(2)}, {"w": Box(name="w", global_shape=(2,), offset=(0,), shape=(2,))}
    save_commit(tmp_path, 0, weight, boxes, None, {}, plan_resume(run_dir).commit.recipe, keep=9)
    with pytest.raises(ResumeError, match=r"weights alone.*init\.from="):
        plan_resume(tmp_path)


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
        ("data.seed=5", "data.seed: 0 -> 5 (it is the order of samples itself"),
        ("data.run_length=2", "data.run_length: 1 -> 2 (it is the order of samples itself"),
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
    if override.startswith(("model", "data.seed", "data.run_length")):
        assert "--allow" not in str(caught.value) and "init.from_run" in str(caught.value)
        with pytest.raises(ResumeError, match="cannot be gone on from"):
            plan_resume(run_dir, overrides, allow=["data", "model", "stage"])
        return
    key = ".".join(override.split("=")[0].split(".")[:2])
    assert f"add --allow {key} if that is meant" in str(caught.value)
    resume = plan_resume(run_dir, overrides, allow=[key])
    assert resume.run.new_segment == ((key.removeprefix("data."),) if key.startswith("data.") else ())
    assert any(text.startswith("new_segment=") for text in resume.arguments) == key.startswith("data.")


def test_what_is_allowed_is_named_and_changes(run_dir: Path) -> None:
    overrides = ["data.window=99", "data.rows_per_step=8", "stage.steps=9999"]
    with pytest.raises(ResumeError, match=r"--allow data.rows_per_step --allow data.window --allow stage.steps if"):
        plan_resume(run_dir, overrides)
    with pytest.raises(ResumeError, match=r"data\.rows_per_step: 4 -> 8\nleave .* --allow data\.rows_per_step if"):
        plan_resume(run_dir, overrides, allow=["data.window", "stage"])
    with pytest.raises(ResumeError, match=r"--allow model names nothing that changes; .* needs it: data.window"):
        plan_resume(run_dir, overrides[:1], allow=["data.window", "model"])
    with pytest.raises(ResumeError, match=r"--allow data.win names nothing|add --allow data.window"):
        plan_resume(run_dir, overrides[:1], allow=["data.win"])
    assert plan_resume(run_dir, overrides, allow=["data", "stage.steps"]).run.new_segment == ("rows_per_step", "window")
    with pytest.raises(ResumeError, match="needs it: nothing"):
        plan_resume(run_dir, allow=["data"])


def test_sources_go_by_their_names(run_dir: Path) -> None:
    def asked(*sources: SourceConfig) -> list[str]:
        listed = (f"{{name: {one.name}, path: {one.path}, weight: {one.weight}}}" for one in sources)
        return [f"data.sources=[{', '.join(listed)}]"]

    first, *others = plan_resume(run_dir).run.data.sources
    with pytest.raises(ResumeError) as caught:
        plan_resume(run_dir, asked(SourceConfig(name="new", path="/somewhere", weight=0.5), first, *others))
    assert "data.sources.new.weight: absent -> 0.5" in str(caught.value)
    assert f"data.sources.{first.name}" not in str(caught.value) and "add --allow data.sources if" in str(caught.value)
    with pytest.raises(ResumeError, match=f"data.sources: {first.name}, .* -> {others[0].name}, "):
        plan_resume(run_dir, asked(*others, first))
    moved = plan_resume(run_dir, asked(replace(first, path="/elsewhere"), *others))
    assert [str(change) for change in moved.changed] == [f"data.sources.{first.name}.path: {first.path} -> /elsewhere"]
    assert moved.run.new_segment == ()


def test_a_world_that_the_rows_do_not_divide_keeps_them(run_dir: Path) -> None:
    resume = plan_resume(run_dir, processes=3)
    assert resume.run.data.rows_per_step == 4
    assert {"  processes: 2 -> 3", "  replicas: 2, of 4 rows a step -> 3, of 4 rows a step"} < set(resume.lines)
    assert resume.lines[-1].startswith("NPROC_PER_NODE=3 launch/torchrun.sh")
    with pytest.raises(RecipeError, match=r"leave none for some of 5 replicas"):
        plan_resume(run_dir, processes=5)


def test_a_cluster_job_says_how_many_processes_there_are(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNODES", "2")
    assert plan_resume(run_dir).environment == {}
    assert plan_resume(run_dir, processes=2).environment == {"NPROC_PER_NODE": "2"}
    assert "  processes: 2 -> 4" in plan_resume(run_dir, processes=2).lines
    monkeypatch.setenv("NPROC_PER_NODE", "1")
    assert plan_resume(run_dir).environment == {}
    assert not any("processes" in line for line in plan_resume(run_dir).lines)
    with pytest.raises(RecipeError, match="6 replicas"):
        plan_resume(run_dir, processes=3)


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
    first, *changes, command = lines("log.every_steps=3", "parallel=tp2", "--allow", "data", "data.window=99")
    assert first.startswith(f"going on after step 7, from {commit} of 20")
    assert {"  log.every_steps: 10 -> 3", "  parallel.tensor: 1 -> 2"} <= set(changes)
    segment = "data, in a new segment of the plan from step 8 on:"
    assert changes[0] == "layout:" and changes[-4:] == [segment, "  data.window: 512 -> 99", "the run:", changes[-1]]
    assert not any("learning_rates" in line or "resume" in line for line in changes)
    words = shlex.split(command)
    assert words[:4] == ["NPROC_PER_NODE=2", "launch/torchrun.sh", "--config-path", str(run_dir)]
    assert {"log.every_steps=3", "+parallel=tp2", "resume=true", "new_segment=[window]"} < set(words[6:])
    assert lines()[1] == "  nothing changes against the saved recipe"


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["resume", str(tmp_path)])
    assert left.value.code == 2
    assert "no checkpoint that can be used" in capsys.readouterr().err
    assert (ROOT / "launch" / "torchrun.sh").is_file()
