"""`python -m launch.jobs.together --config-name RECIPE [key=value ...]` on every rank: the preflight, no training.

`triptych preflight` starts it on this node, `triptych slurm --preflight` on those of a job.
"""

import sys
from collections.abc import Sequence
from functools import partial

from data.index.file import Index
from data.loading.rows import open_indexes
from launch.jobs.preflight import file_checks
from launch.jobs.torchrun import recipe_of
from parallel.watch import Watch
from parallel.world import distributed
from train.checks import Check
from train.config import RunConfig
from train.faults import MENDABLE
from train.preflight import check_together


def main(arguments: Sequence[str]) -> None:
    """Leaves with 0, or, all ranks together, with 2 and the reasons."""
    run = recipe_of(arguments)
    with (
        Watch(run.parallel, run.run_dir, MENDABLE) as watch,
        distributed(run.parallel, run.seed) as groups,
        watch.telling(),
    ):
        check_together(run, groups, thorough=True, own=partial(node_checks, run))


def node_checks(run: RunConfig) -> list[Check]:
    """What each node has to see for itself: files, and a sample of each source, which a listing does not promise."""
    checks = file_checks(run)
    if not all(check.ok for check in checks):
        return checks
    return [*checks, sample_check(run)]


def sample_check(run: RunConfig) -> Check:
    """The first sample of each source, read and compared with its index."""
    read = []
    for source, index in zip(run.data.sources, open_indexes(run.data), strict=True):
        try:
            if isinstance(index, Index):  # of token files the check that opens them reads a part
                index.read_bytes(0)
        except (ValueError, OSError) as fault:
            cure = "see that this node reaches the store and may read there, not only list (docs/oss.md)"
            return Check(name="store", found=f"source {source.name!r}: {fault}; {cure}", ok=False)
        read.append(source.name)
    return Check(name="store", found=f"a sample of each is as it was indexed: {', '.join(read)}")


if __name__ == "__main__":
    main(sys.argv[1:])
