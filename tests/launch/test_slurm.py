"""`triptych slurm` and launch/train.sbatch through real SLURM daemons. `make prove-launch` has more of it.

apt-get install slurmctld slurmd slurm-client munge; python -m pytest -m slurm
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.runs import ROOT, make_data, write_recipe
from tests.harness.slurm import Cluster, cluster, missing
from tests.harness.slurm_story import node_lost, tell

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.mark.timeout(1200)
def test_a_job_that_loses_a_node_goes_on_with_the_bits_it_would_have_had(slurm: Cluster, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", make_data(tmp_path / "data"), "stage2", ParallelConfig(), processes=2)
    told = tell(slurm, recipe, tmp_path / "straight", tmp_path, node_lost)
    assert not told.wrong and not told.left_over and told.unlike == 0, told


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
    assert "the verdict is refused" in (tmp_path / "log").read_text()


def test_the_script_is_sound_shell() -> None:
    for script in ("launch/train.sbatch", "launch/torchrun.sh"):
        assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0
