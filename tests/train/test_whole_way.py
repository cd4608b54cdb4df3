"""From object storage that cuts and flips bodies, with a killed worker and a decoder that hangs: the folder's run.

Fifty steps of it, over pipeline stages as well, and with a warm cache: `make prove-data ARGS="--only whole"`.
"""

from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.whole_way import whole_way
from tests.prove.context import Worlds


@pytest.mark.timeout(400)
def test_a_run_from_storage_that_fails_is_the_run_from_a_folder_bit_for_bit(tmp_path: Path, worlds: Worlds) -> None:
    found = whole_way(tmp_path, 6, ParallelConfig(), processes=2, runs=("folder", "cold"), nursery=worlds.nursery)
    for name, delivered in found.delivered.items():
        assert delivered.samples > 60
        assert delivered.lost == delivered.repeated == delivered.differing == 0, (name, delivered)
    difference = found.differences["cold"]
    assert difference.tensors > 200 and difference.steps == 6
    assert difference.weights == difference.state == difference.rows == difference.curves == 0, difference
    assert found.quarantined == 0
    # On a busy host so few requests may come in so short a run that the throttle lets all of them through.
    missing = [what for what, count in found.struck.items() if not count and "throttle" not in what]
    assert not missing, found.struck
