"""Real runs in which one rank dies or stalls: the job ends in time, and one message says which, where and with what.

All faults on all axes: `make prove-parallel ARGS="--only faults/"`.
"""

from pathlib import Path

import pytest

from parallel.config import ParallelConfig
from tests.harness.faulty import Fault
from tests.harness.reports import Run, wrong_in_report
from tests.harness.runs import data_config, fail, make_data, write_recipe
from train.ending import read_ending


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("fault", "parallel", "timeout"),
    [
        # Signs of life are 2 s apart by default, and these steps take less.
        (Fault(kind="kill", where="forward", rank=1, microbatch=1, microbatches=2), ParallelConfig(), 600),
        (Fault(kind="sleep", where="backward", rank=1, microbatch=2, microbatches=4), ParallelConfig(pipeline=2), 24),
    ],
    ids=["killed", "stalled"],
)
def test_a_rank_that_dies_or_stalls_ends_the_job_and_is_named(
    fault: Fault, parallel: ParallelConfig, timeout: int, tmp_path: Path
) -> None:
    data = make_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe", data, "stage2", parallel, processes=2)
    ended = fail(recipe, tmp_path / "run", fault, f"parallel.timeout_seconds={timeout}")
    run = Run(data=data_config(data), parallel=parallel, processes=2)
    assert wrong_in_report(run, fault, ended) == [], ended.output
    assert ended.seconds < 24 and not ended.left_over and ended.code != 0
    (kept,) = (tmp_path / "run" / "faults").iterdir()
    assert kept.read_text() in ended.output
    ending = read_ending(tmp_path / "run")
    assert ending is not None and (ending.verdict, ending.step, ending.commit) == ("failed", 2, None)
