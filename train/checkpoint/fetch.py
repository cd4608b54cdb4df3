"""The checkpoint that a run goes on from, be it here or in object storage alone."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from train.agreement import gathered, on_first_rank, slowly_on_first_rank
from train.checkpoint.commits import COMMIT, Commit
from train.checkpoint.load import find_commit
from train.checkpoint.remote import Remote, fetch_newest, noted

log = logging.getLogger(__name__)
_SEEN_SECONDS = 60.0
"""In which a shared file system shows every node what one of them has written."""


def find_or_fetch(
    where: str | Path, remote: Remote | None, seconds: float, tell: Callable[[str], None] = log.warning
) -> Commit:
    """`find_commit`, after the newest checkpoint that is whole was fetched if there is none here. All ranks call it.

    Rank 0 fetches, into a folder that every node has to share; in a world it has `seconds` for it.

    Args:
        where: a run's folder, or one checkpoint folder, for which nothing is fetched.
        remote: where to look; None: where the run's folder says that it was uploaded to.
        tell: hears, on rank 0, why one was passed over, and how far fetching is.

    Raises:
        ValueError: there is none here, and nothing says where else.
        CheckpointError: none could be fetched.
    """
    try:
        return find_commit(where, tell=tell)
    except ValueError as fault:
        place = remote or on_first_rank("looking for a note of uploads", lambda: noted(where), None)
        if place is None:
            raise
        reason = str(fault)
    run_dir = Path(where)
    fetched: list[Path] = []

    def fetch(check: Callable[[], None]) -> None:
        tell(f"{reason}; looking in {place.address}")
        fetched.append(fetch_newest(place, run_dir, tell, seconds, check=check))

    slowly_on_first_rank(f"fetching a checkpoint from {place.address}", fetch, seconds)
    name = on_first_rank("naming what was fetched", lambda: fetched[0].name, None)
    gathered("looking for what was fetched", lambda: _see(run_dir / "checkpoints" / name), None)
    return find_commit(run_dir, tell=tell)


def _see(path: Path) -> None:
    end = time.monotonic() + _SEEN_SECONDS
    while not (path / COMMIT).exists():
        if time.monotonic() > end or not dist.is_initialized():
            raise ValueError(
                f"{path}, which rank 0 has fetched, is not there on this node; run_dir must lie on a file system that "
                "all nodes share"
            )
        time.sleep(0.5)
