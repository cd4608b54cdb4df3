"""Uploads of a run's checkpoints as its recipe has them, and the commit that the run goes on from."""

import sys
from pathlib import Path

from parallel.stop import Stop
from train.agreement import on_first_rank, slowly_on_first_rank
from train.checkpoint import identity
from train.checkpoint.commits import Commit
from train.checkpoint.fetch import find_or_fetch
from train.checkpoint.remote import remote_of
from train.checkpoint.uploads import Upload, Uploads
from train.config import RunConfig
from train.metrics import Metrics
from train.ready import check_run_folder, check_upload_folder

ENDING_SECONDS = 5.0
"""Of the grace, kept for what comes after uploads: files are closed, and all ranks leave in order."""


def commit_to_resume(run: RunConfig) -> Commit | None:
    """What the run goes on from, fetched if need be; None for a new run. All ranks call it.

    Raises ValueError if a new run would write over another, or there is nothing to go on from; CheckpointError.
    """
    check_run_folder(run)
    if run.resume:
        return find_or_fetch(run.run_dir, remote_of(run), run.checkpoint.transfer_seconds, _say)
    on_first_rank("looking at where checkpoints are uploaded to", lambda: check_upload_folder(run), None)
    return None


def run_id(run: RunConfig) -> str:
    """The id of the run, drawn at its first start (train/checkpoint/identity.py). All ranks call it."""
    return on_first_rank("naming the run", lambda: identity.settled_id(run.run_dir), None)


def open_uploads(run: RunConfig, rank: int, resumed: Commit | None) -> Uploads | None:
    """The uploads of rank 0, if the recipe asks for any; with what an earlier start may have left to upload. All ranks
    call it. Raises CheckpointError."""
    remote = remote_of(run)
    if remote is None:
        return None
    on_first_rank("noting where checkpoints are uploaded to", lambda: remote.write_note(Path(run.run_dir)), None)
    if rank != 0:
        return None
    uploads = Uploads(
        remote,
        bytes_per_second=run.checkpoint.upload_bytes_per_second,
        keep=run.checkpoint.keep,
        keep_every=run.checkpoint.keep_every_steps,
    )
    if resumed is not None:
        uploads.offer(resumed.path)
    return uploads


def tell_uploads(uploads: Uploads | None, metrics: Metrics | None) -> None:
    """Say and record what is new."""
    for upload in uploads.poll() if uploads is not None else ():
        _tell(upload, metrics)


def finish_uploads(run: RunConfig, uploads: Uploads | None, metrics: Metrics | None, stop: Stop) -> None:
    """Wait for what is not uploaded yet, and say what stays behind: its next start uploads that. All ranks call it.

    Of a run that is asked to end it takes what is left of the grace but for ENDING_SECONDS. All ranks wait: once the
    first of them has ended in such a run the others have seconds, and torchrun of a node whose ranks have all ended
    waits five minutes for the other nodes'.
    """
    if run.checkpoint.upload is None:
        return
    seconds = min(run.checkpoint.transfer_seconds, max(0.0, stop.seconds_left - ENDING_SECONDS))
    slowly_on_first_rank("waiting for uploads", lambda _: _finish(uploads, metrics, seconds), seconds)


def _finish(uploads: Uploads | None, metrics: Metrics | None, seconds: float) -> None:
    if uploads is None:
        return
    tell_uploads(uploads, metrics)
    if uploads.held and seconds > 0:
        _say(f"waiting at most {seconds:g} s for the upload of {', '.join(sorted(uploads.held))}")
    left = uploads.finish(seconds)
    tell_uploads(uploads, metrics)
    if left is not None:
        _say(f"{left}; `triptych checkpoint upload RUN` sends it")


def _tell(upload: Upload, metrics: Metrics | None) -> None:
    if upload.line is not None:
        _say(upload.line)
    if metrics is not None:
        metrics.record_upload(upload)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
