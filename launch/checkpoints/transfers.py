"""`triptych checkpoint upload|download`: checkpoints to object storage and back, by hand."""

import sys
from dataclasses import asdict
from pathlib import Path

from data.store.config import OssConfig
from launch.reports import Report
from train.checkpoint.commits import RECIPE
from train.checkpoint.load import find_commit
from train.checkpoint.remote import Remote, fetch_newest, remote_of
from train.checkpoint.upload import Job, run
from train.lock import check_lock
from train.resolve import compose

_WAIT_SECONDS = 3600.0


def fetched(address: str, run_dir: Path, oss: OssConfig) -> Report:
    """Fetch the newest checkpoint that is whole into a run's folder, unless one that is whole and no older lies there.

    Raises ValueError if there is none, or the folder is that of another run; StoreError.
    """
    remote = Remote(address=address, oss=oss)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    path = fetch_newest(remote, run_dir.resolve(), say, _WAIT_SECONDS, later=True)
    remote.write_note(run_dir)
    return Report(lines=[f"{path} is whole"], data={"path": str(path)})


def uploaded(run_dir: Path) -> Report:
    """Upload the newest usable checkpoint of a run once, as its recipe says; the report is good if it is there now.

    Raises ValueError if there is none, its recipe uploads nothing, or the run trains, which then uploads by itself: two
    at a time would take each other's for what the run has left behind.
    """
    check_lock(run_dir)
    commit = find_commit(run_dir.resolve())
    recipe = compose(Path(RECIPE).stem, folder=commit.path)
    remote = remote_of(recipe)
    if remote is None:
        raise ValueError(f"the recipe of {commit.path} has no checkpoint.upload, so nothing says where to")
    sent = run(
        Job(
            folder=str(commit.path),
            address=remote.address,
            oss=asdict(remote.oss),
            bytes_per_second=recipe.checkpoint.upload_bytes_per_second,
            keep=recipe.checkpoint.keep,
            keep_every=recipe.checkpoint.keep_every_steps,
        )
    )
    lines = [f"{commit.path.name}: sent {sent.files} file(s), {sent.nbytes / 1e9:.3g} GB in {sent.seconds:.0f} s"]
    lines += [f"not uploaded: {sent.fault}"] if sent.fault else []
    lines += [f"older ones stay in the bucket for now: {sent.left}"] if sent.left else []
    return Report(lines=lines, data=asdict(sent), good=sent.fault is None)
