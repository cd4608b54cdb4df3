"""The launch scripts as a shell runs them, with a stand-in for python where processes would start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.checkout import ROOT

RECORDER = """#!/usr/bin/env bash
if [[ $2 == launch.jobs.preflight ]]; then
  words=()
  for word in "$@"; do [[ $word == --files && -z ${{LOOK:-}} ]] || words+=("$word"); done  # the data is not here
  exec {python} "${{words[@]}}"
fi
if [[ $2 == launch.jobs.slurm_job ]]; then
  [[ $3 == begin ]] && exec {python} "$@"
  cat "$RECORD.verdict"
  exit 0
fi
printf '%s\\n' "$@" > "$RECORD"
"""


def run(tmp_path: Path, script: str, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess, str]:
    """Run a script of launch/ from another folder; returns it and what python was asked to start."""
    python = tmp_path / "python"
    python.write_text(RECORDER.format(python=sys.executable))
    python.chmod(0o755)
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = keep | {"PYTHON": str(python), "RECORD": str(tmp_path / "record"), "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run(
        [str(ROOT / "launch" / script), *arguments], env=given, cwd=tmp_path, capture_output=True, text=True
    )
    record = tmp_path / "record"
    return done, record.read_text() if record.exists() else ""


def test_a_bad_recipe_is_told_once_and_nothing_starts(tmp_path: Path) -> None:
    done, started = run(
        tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", "stage.stepz=1", NPROC_PER_NODE="2"
    )
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("stage.stepz is not a key") == 1
    assert started == ""


def test_files_that_are_not_there_are_told_once_and_nothing_starts(tmp_path: Path) -> None:
    wrong = ["data.tokenizer=/nowhere", "init.from_run=/no/run", f"run_dir={tmp_path}"]
    done, started = run(
        tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", *wrong, NPROC_PER_NODE="2", LOOK="1"
    )
    assert done.returncode == 2
    assert done.stderr.count("no tokenizer.json in /nowhere") == 1
    assert done.stderr.count("init.from_run=/no/run has no finished checkpoint") == 1
    assert started == ""


def test_processes_that_the_axes_do_not_divide_are_refused(tmp_path: Path) -> None:
    done, started = run(
        tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", "parallel=tp2", NPROC_PER_NODE="3"
    )
    assert done.returncode == 2
    assert "start a multiple of 2 processes" in done.stderr
    assert started == ""


def test_one_node_starts_its_processes(tmp_path: Path) -> None:
    done, started = run(tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", "seed=3", NPROC_PER_NODE="2")
    assert done.returncode == 0, done.stderr
    words = started.splitlines()
    assert words[:2] == ["-m", "launch.jobs.torchrun"]
    assert {"--nnodes=1", "--nproc-per-node=2", "--standalone", "--restarts=0"} <= set(words)
    at = words.index("train")
    assert words[at - 1 : at + 4] == ["-m", "train", "--config-name", "quickstart_stage1", "seed=3"]


@pytest.mark.parametrize(("gpus", "processes"), [("", 1), ("0", 1), ("0,1,3", 3)])
def test_there_is_one_process_a_visible_gpu(tmp_path: Path, gpus: str, processes: int) -> None:
    _, started = run(
        tmp_path,
        "torchrun.sh",
        "--config-name",
        "quickstart_stage1",
        "data.rows_per_step=3",
        CUDA_VISIBLE_DEVICES=gpus,
    )
    assert f"--nproc-per-node={processes}" in started.splitlines()


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    arguments = ["--config-name", "quickstart_stage1"]
    done, started = run(tmp_path, "torchrun.sh", *arguments, CUDA_VISIBLE_DEVICES="0", NPROC_PER_NODE="2")
    assert done.returncode == 2 and "shows 1 GPU(s)" in done.stderr and started == ""


def test_several_nodes_meet_at_one_of_them(tmp_path: Path) -> None:
    arguments = ["--config-name", "qwen2vl_7b_stage2"]
    nodes = {"NNODES": "8", "NPROC_PER_NODE": "8"}
    done, started = run(tmp_path, "torchrun.sh", *arguments, **nodes)
    assert done.returncode == 2 and "MASTER_ADDR" in done.stderr and started == ""
    done, started = run(tmp_path, "torchrun.sh", *arguments, MASTER_ADDR="node0", MASTER_PORT="1234", **nodes)
    assert done.returncode == 0, done.stderr
    assert {"--nnodes=8", "--rdzv-backend=c10d", "--rdzv-endpoint=node0:1234"} <= set(started.splitlines())
    assert "--standalone" not in started


@pytest.mark.parametrize("count", ["-1", "many"])
def test_restarts_are_a_count(tmp_path: Path, count: str) -> None:
    done, started = run(tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", RESTARTS=count)
    assert done.returncode == 2 and f"RESTARTS={count}" in done.stderr and started == ""


def test_a_preflight_starts_the_ranks_that_look_and_no_training(tmp_path: Path) -> None:
    arguments = ["--preflight", "--config-name", "quickstart_stage1", "data.tokenizer=/nowhere"]
    done, started = run(tmp_path, "torchrun.sh", *arguments, NPROC_PER_NODE="2", LOOK="1")
    assert done.returncode == 0, "what this node lacks is told with what the others do"
    words = started.splitlines()
    assert (
        words[words.index("-m", 2) + 1] == "launch.jobs.together"
        and "--preflight" not in words
        and "train" not in words
    )


@pytest.mark.parametrize("words", [[], ["--preflight"]])
def test_a_run_folder_that_cannot_be_made_is_told_once_with_its_cure(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    arguments = [*words, "--config-name", "quickstart_stage1", f"run_dir={tmp_path / 'file' / 'run'}"]
    done, started = run(tmp_path, "torchrun.sh", *arguments, NPROC_PER_NODE="2", LOOK="1")
    assert done.returncode == 2 and started == ""
    (told,) = [line for line in done.stderr.splitlines() if "run folder" in line]
    assert "cannot write run_dir=" in told and "or name another" in told


def test_what_would_run_is_shown_and_nothing_starts(tmp_path: Path) -> None:
    arguments = ["--config-name", "quickstart_stage1", f"run_dir={tmp_path / 'run'}", "--print"]
    done, _ = run(tmp_path, "torchrun.sh", *arguments, NPROC_PER_NODE="2", PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    (command,) = [line for line in done.stdout.splitlines() if line.startswith("  torchrun ")]
    assert {"--nproc-per-node=2", "--standalone", "-m", "train", "quickstart_stage1"} <= set(command.split())
    assert "--print" not in command and "--signals-to-handle=" in command
    assert "rows_per_step:" in done.stdout, "the recipe, resolved"
    (shown,) = [line for line in done.stdout.splitlines() if "NCCL_IB_TIMEOUT=22" in line]
    assert len(shown.split()) > 5, "a setting has its reason beside it"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["--files", "--multirun", "-m", "--print=1"])
def test_an_unknown_option_is_refused(tmp_path: Path, word: str) -> None:
    done, started = run(tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", word)
    assert done.returncode == 2 and started == ""
    assert done.stderr.count("\n") == 1 and f"no option {word}, but --config-name" in done.stderr


@pytest.mark.parametrize("gpus", ["", "0"])
def test_processes_are_a_count(tmp_path: Path, gpus: str) -> None:
    given = {"CUDA_VISIBLE_DEVICES": gpus, "NPROC_PER_NODE": "auto"}
    done, started = run(tmp_path, "torchrun.sh", "--config-name", "quickstart_stage1", **given)
    assert done.returncode == 2 and started == ""
    assert done.stderr.startswith("NPROC_PER_NODE=auto and NNODES=1 are counts")


PREEMPTED = "PreemptEligibleTime=None PreemptTime=2026-11-22T03:00:00"
WANTED = "PreemptEligibleTime=None PreemptTime=None"


def under_slurm(
    tmp_path: Path, verdict: str, restarts: str, srun: str = 'shift; exec "$@"', told: str = WANTED
) -> tuple[subprocess.CompletedProcess, str, str]:
    """Run train.sbatch with stand-ins; returns it, what was started, and what scontrol was told."""
    (tmp_path / "record.verdict").write_text(verdict)
    for name, text in {
        "srun": f"#!/usr/bin/env bash\n{srun}\n",
        "scontrol": f"#!/usr/bin/env bash\n[[ $1 == requeue ]] && echo $* >{tmp_path}/told && exit\n"
        f"[[ $2 == job ]] && echo {told} && exit\nseq -f node%g 7 20000\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "12345"}
    slurm["SLURM_RESTART_COUNT"] = restarts
    done, started = run(
        tmp_path,
        "train.sbatch",
        *("--config-name", "qwen2vl_2b_stage1", f"run_dir={tmp_path / 'run'}"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_SUBMIT_DIR=str(ROOT),
        **slurm,
    )
    said = (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""
    return done, started, said


@pytest.mark.parametrize(
    ("restarts", "verdict", "left"),
    [
        ("0", "done", 0),
        ("1", "done", 0),
        ("1", "again", 75),
        ("0", "retry", 75),
        ("0", "refused", 2),
        ("0", "failed", 1),
    ],
)
def test_slurm_hands_its_nodes_to_the_launch_script(tmp_path: Path, restarts: str, verdict: str, left: int) -> None:
    commit = tmp_path / "run" / "checkpoints" / "step_00000004.00000000"
    commit.mkdir(parents=True)
    (commit / "COMMIT").touch()
    done, started, told = under_slurm(tmp_path, verdict, restarts)
    assert done.returncode == left, done.stderr
    # What the user has to mend, and what has been tried often enough, would fail again.
    assert told == ("requeue 12345\n" if verdict in ("again", "retry") else "")
    expected = {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=node7:22345", "--rdzv-id=12345", "--restarts=3"}
    assert expected <= set(started.splitlines())
    # A job that was put back in the queue would else be refused: its run has checkpoints.
    assert ("resume=true" in started.splitlines()) == (restarts == "1")


def test_a_job_that_was_lost_before_its_first_commit_begins_anew(tmp_path: Path) -> None:
    done, started, _ = under_slurm(tmp_path, "done", "1")
    assert done.returncode == 0, done.stderr
    assert started and "resume=true" not in started.splitlines()


@pytest.mark.parametrize("told", [WANTED, PREEMPTED])
def test_a_job_that_is_asked_to_end_goes_back_only_if_another_took_its_place(tmp_path: Path, told: str) -> None:
    asked = 'kill -TERM $PPID; shift; exec "$@"'  # as SLURM asks the script itself, at scancel and at preemption
    done, _, said = under_slurm(tmp_path, "again", "0", asked, told)
    assert done.returncode == 75, done.stderr
    assert said == ("requeue 12345\n" if told == PREEMPTED else "")
