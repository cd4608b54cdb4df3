"""`triptych slurm` and `triptych preflight` without SLURM: what they would send, and what they refuse to."""

import json
import os
import platform
from pathlib import Path

import pytest

from launch.jobs import slurm_job
from launch.jobs.slurm import Job, lead_seconds, plan_job, seconds_of
from tests.launch.commands import end
from train.ending import write_ending
from train.resolve import compose

NAME = "qwen2vl_7b_stage2"
JOB = ["slurm", "--config-name", NAME, "--nodes", "8", "--gpus-per-node", "8"]


def test_what_would_run_is_shown_and_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("subprocess.run", None)
    options = ["--time", "1-12", "--partition", "gpu", "--after", "812", "--sbatch=--qos=low", "--print"]
    assert end(*JOB, *options, "seed=3", f"run_dir={tmp_path / 'run'}") == 0
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("  sbatch "))
    words = line.split()
    assert {"--nodes=8", "--gpus-per-node=8", "--time=1-12", "--partition=gpu", "--qos=low"} <= set(words)
    assert {"--dependency=afterok:812", "--signal=USR1@120", "launch/train.sbatch", "seed=3"} <= set(words)
    assert f"--output={tmp_path / 'run'}/logs/job_%j.log" in words
    assert words.index("launch/train.sbatch") < words.index("--config-name") < words.index("seed=3")
    assert "NNODES=8 NPROC_PER_NODE=8" in told and "--signals-to-handle" in told
    for name in ("NCCL_IB_TIMEOUT=22", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC=600", "CUDA_DEVICE_MAX_CONNECTIONS=1"):
        (shown,) = [line for line in told.splitlines() if name in line]
        assert len(shown.split()) > 5, "a setting has its reason beside it"
    assert not (tmp_path / "run").exists()


def test_a_run_is_warned_as_long_before_the_limit_as_it_needs(tmp_path: Path) -> None:
    run = compose(NAME)
    assert lead_seconds(run) == 120
    patient = plan_job(NAME, ["checkpoint.grace_seconds=600"], Job(nodes=8, gpus_per_node=8, time="12:00:00"))
    assert "--signal=USR1@660" in patient.command
    with pytest.raises(ValueError, match="--time 10 is 600 s, but a run is warned 660 s"):
        plan_job(NAME, ["checkpoint.grace_seconds=600"], Job(nodes=8, gpus_per_node=8, time="10"))


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("90:30", 5430), ("12:00:00", 43200), ("2-00", 172800), ("1-12:30", 131400), ("1-0:0:5", 86405)],
)
def test_times_are_read_as_sbatch_does(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["0", "0:00", "UNLIMITED", "unlimited", "INFINITE"])
def test_a_job_may_have_no_limit(time: str) -> None:
    assert seconds_of(time) is None
    job = plan_job(NAME, [], Job(nodes=8, gpus_per_node=8, time=time))
    assert f"--time={time}" in job.command


def test_a_run_folder_that_cannot_be_made_is_told_with_its_cure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    where = f"run_dir={tmp_path / 'file' / 'run'}"
    assert end(*JOB, "--after", "812", where) == 2
    told = capsys.readouterr().err
    assert f"run folder: {platform.node()} cannot write {where}" in told and "or name another" in told
    job(monkeypatch, 0)
    with pytest.raises(SystemExit) as left:
        slurm_job.main(["begin", "--config-name", NAME, where])
    assert left.value.code == 2 and "or name another" in capsys.readouterr().err


def test_what_could_only_fail_after_its_wait_is_not_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end(*JOB[:-4], "--nodes", "3", "--gpus-per-node", "3", "--print") == 2
    assert "9 processes" in capsys.readouterr().err
    assert end(*JOB, "--time", "soon", "--print") == 2
    assert "--time soon is none of" in capsys.readouterr().err
    here = ["data.tokenizer=/nowhere", f"run_dir={tmp_path / 'run'}"]
    assert end(*JOB, *here) == 2
    assert "no tokenizer.json in /nowhere" in capsys.readouterr().err
    # A job that waits for another one is looked at when it starts.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert end(*JOB, "--after", "812", *here) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


def test_a_job_is_sent_and_its_log_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/sent; echo "77;cluster"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert end(*JOB, "--after", "812", f"run_dir={tmp_path / 'run'}") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"job 77: {tmp_path / 'run'} on 8 x 8 GPUs") and "logs/job_77.log" in told
    assert (tmp_path / "run" / "logs").is_dir(), "SLURM makes no folder for a log"
    assert "launch/train.sbatch" in (tmp_path / "sent").read_text().splitlines()
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho no such partition >&2; exit 1\n")
    assert end(*JOB, "--after", "812", f"run_dir={tmp_path / 'run'}") == 2
    assert "was refused: no such partition" in capsys.readouterr().err


def test_a_preflight_is_the_launch_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert end("preflight", "--config-name", "quickstart_stage1", "seed=3", "--print") == 0
    shown = capsys.readouterr().out.strip()
    assert shown == "launch/torchrun.sh --preflight --config-name quickstart_stage1 seed=3"
    assert end(*JOB, "--preflight", "--print") == 0
    assert f"launch/train.sbatch --preflight --config-name {NAME}" in capsys.readouterr().out


def job(monkeypatch: pytest.MonkeyPatch, restarts: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


def test_a_job_is_put_back_as_long_as_it_gets_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for restarts in range(7):
        job(monkeypatch, restarts)
        words = slurm_job.begin(["--config-name", "quickstart_stage1"], str(tmp_path))
        assert ("resume=true" in words) == (restarts > 1), "there is nothing to go on from before"
        if restarts == 1:
            commit = tmp_path / "checkpoints" / "step_00000004.00000000"
            commit.mkdir(parents=True)
            (commit / "COMMIT").touch()
        found.append(slurm_job.end(str(tmp_path)))
    # The first two without a commit, one that got on, and then some that did not.
    assert found == ["retry", "retry", "retry", "retry", "retry", "failed", "failed"]
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [line["restarts"] for line in lines] == list(range(7)) and lines[-1]["commit"].startswith("step_00000004")
    monkeypatch.setenv("SLURM_JOB_ID", "813")
    slurm_job.begin(["--config-name", "quickstart_stage1"], str(tmp_path))
    assert slurm_job.end(str(tmp_path)) == "retry", "what another job has tried does not count"


def test_damaged_lines_of_starts_count_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job(monkeypatch, 0)
    words = ["--config-name", "quickstart_stage1"]
    slurm_job.begin(words, str(tmp_path))
    with (tmp_path / "jobs.jsonl").open("ab") as file:
        file.write(b'\xff\n[]\n{"job": "812", "rest')  # the host was lost while it wrote
    job(monkeypatch, 1)
    assert slurm_job.begin(words, str(tmp_path)) == words
    assert slurm_job.end(str(tmp_path)) == "retry" and slurm_job._idle(str(tmp_path)) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'jobs.jsonl'}: 3 damaged lines count for nothing\n"


def test_a_job_follows_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, 0)
    slurm_job.begin(["--config-name", "quickstart_stage1"], str(tmp_path))
    for verdict in ("done", "again"):
        write_ending(tmp_path, verdict, "told", 3)  # type: ignore[arg-type]
        assert slurm_job.end(str(tmp_path)) == verdict
    write_ending(tmp_path, "failed", "a loss that is no number", 3, refused=True)
    assert slurm_job.end(str(tmp_path)) == "refused"
