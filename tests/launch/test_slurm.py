"""launch/train.sbatch through real SLURM daemons: warned, put back in the queue, gone on from, and done.

apt-get install slurmctld slurmd slurm-client munge; python -m pytest -m slurm
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.run_faults import well
from tests.harness.runs import ROOT, make_data, read_recipe
from tests.harness.slurm import Cluster, cluster, missing
from tests.harness.stopped import recipe_of, warned_job
from tests.prove.context import Worlds

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.mark.timeout(1200)
def test_a_job_that_is_warned_goes_back_in_the_queue_and_on_to_its_end(
    slurm: Cluster, tmp_path: Path, worlds: Worlds
) -> None:
    recipe = recipe_of(tmp_path, make_data(tmp_path / "data"), ParallelConfig())
    well(worlds.nursery.live(replace(read_recipe(recipe), run_dir=str(tmp_path / "straight")), 2))
    found = warned_job(slurm, recipe, tmp_path / "straight", tmp_path, sys.executable)
    assert not found.wrong and not found.left_over, found
    difference = found.difference
    assert difference.weights == difference.state == difference.rows == difference.curves == 0, difference


@pytest.mark.timeout(300)
def test_a_job_that_fails_stays_out_of_the_queue(slurm: Cluster, tmp_path: Path) -> None:
    job = slurm.submit(
        *("--nodes=2", "--gpus-per-node=1", f"--output={tmp_path / 'log'}", "launch/train.sbatch"),
        *("--config-name", "quickstart_stage1", "data.tokenizer=/nowhere", f"run_dir={tmp_path / 'run'}"),
        PYTHON=sys.executable,
        NPROC_PER_NODE="1",
        MASTER_ADDR="127.0.0.1",
    )
    ended = slurm.await_state(job, ("COMPLETED", "FAILED", "CANCELLED"), 200)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), (tmp_path / "log").read_text()
    assert "the verdict is none" in (tmp_path / "log").read_text()


def test_the_script_is_sound_shell() -> None:
    for script in ("launch/train.sbatch", "launch/torchrun.sh"):
        assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0
