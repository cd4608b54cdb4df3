"""launch/train.sbatch through real SLURM daemons: warned, put back in the queue, gone on from, and done.

apt-get install slurmctld slurmd slurm-client munge; python -m pytest -m slurm
"""

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.asked import in_step
from tests.harness.runs import ROOT, _marked, compare_runs, launch, make_data, write_recipe
from tests.harness.slurm import Cluster, cluster, missing
from train.ending import read_ending

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def await_state(slurm: Cluster, number: int, states: tuple[str, ...], seconds: float) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while (job := slurm.job(number)).get("JobState") not in states:
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    return job


@pytest.mark.timeout(1200)
def test_a_job_that_is_warned_goes_back_in_the_queue_and_on_to_its_end(slurm: Cluster, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe", data, "stage2", ParallelConfig(), processes=2)
    launch(recipe, tmp_path / "straight", timeout=200.0)

    mark, moment, run, log = uuid.uuid4().hex, tmp_path / "moment", tmp_path / "run", tmp_path / "log"
    fault = replace(in_step(2, microbatches=2, rank=1), moment=str(moment))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -u -m tests.harness.faulty \'{fault.to_json()}\' - "$@"\n')
    python.chmod(0o755)
    settings = {"PYTHON": sys.executable, "PYTHON_EXEC": str(python), "NPROC_PER_NODE": "1"}
    settings |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "TRIPTYCH_TEST_RUN": mark}
    job = slurm.submit(
        *("--nodes=2", "--gpus-per-node=1", f"--output={log}", "launch/train.sbatch"),
        *("--config-path", str(recipe.folder), "--config-name", recipe.name, f"run_dir={run}"),
        **settings,
    )
    deadline = time.monotonic() + 300
    while not moment.exists():
        assert time.monotonic() < deadline, log.read_text()[-4000:] if log.exists() else slurm.job(job)
        time.sleep(0.1)
    slurm.ask("scancel", "--signal=USR1", str(job))  # what --signal does when the time comes
    await_state(slurm, job, ("PENDING",), 120)
    ending = read_ending(run)
    assert ending is not None and (ending.verdict, ending.step) == ("again", 2), log.read_text()[-4000:]
    ended = await_state(slurm, job, ("COMPLETED", "FAILED", "CANCELLED"), 400)
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("COMPLETED", "1", "0:0"), log.read_text()
    difference = compare_runs(tmp_path / "straight", run)
    assert difference.weights == difference.state == difference.rows == difference.curves == 0, difference
    told = log.read_text()
    assert signal.Signals.SIGUSR1.name in told and "the verdict is again" in told and "the verdict is done" in told
    assert not _marked(mark)


@pytest.mark.timeout(300)
def test_a_job_that_fails_stays_out_of_the_queue(slurm: Cluster, tmp_path: Path) -> None:
    job = slurm.submit(
        *("--nodes=2", "--gpus-per-node=1", f"--output={tmp_path / 'log'}", "launch/train.sbatch"),
        *("--config-name", "quickstart_stage1", "data.tokenizer=/nowhere", f"run_dir={tmp_path / 'run'}"),
        PYTHON=sys.executable,
        NPROC_PER_NODE="1",
        MASTER_ADDR="127.0.0.1",
    )
    ended = await_state(slurm, job, ("COMPLETED", "FAILED", "CANCELLED"), 200)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), (tmp_path / "log").read_text()
    assert "the verdict is none" in (tmp_path / "log").read_text()


def test_the_script_is_sound_shell() -> None:
    for script in ("launch/train.sbatch", "launch/torchrun.sh"):
        assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0
