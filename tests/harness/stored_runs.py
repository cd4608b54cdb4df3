"""Runs that upload their checkpoints to the loopback service, are killed, and lose their folders."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from data.store.config import LimiterConfig, OssConfig
from parallel.config import ParallelConfig
from tests.harness.lives import Nursery, apart, run_config, with_environment
from tests.harness.oss_service import OssService, oss_service
from tests.harness.run_faults import well
from train.checkpoint.commits import FILES, problems, step_of
from train.checkpoint.remote import Remote, fetch_newest
from train.config import RunConfig

ADDRESS = "oss://shards/run"
STEPS, CUT = 5, 3
SLOW = 4e6
"""Bytes a second of an upload that is to be met half done."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What became of a run whose folder was lost."""

    apart: float
    """At its end, from the run that lost nothing: loss, norm and weights of the steps after, the largest error."""
    unsound: int
    """Checkpoints in the bucket that have COMMIT and are not whole, and checkpoints that were due there and are not."""
    from_step: int
    """That it went on from."""


def lost_run(nursery: Nursery, folder: Path, data: Path, how: str, plant: str | None = None) -> Stored:
    """A run of DP2 that loses its folder after step CUT and goes on from what it has uploaded.

    Args:
        how: `gone`; `killed`, where the first start is killed in the middle of the upload of CUT's commit, and a second
            one sends the rest; `damaged`, where a bit of the newest commit in the bucket is flipped.
    """
    whole = run_config(folder / "whole", data, "stage2", ParallelConfig(), steps=STEPS)
    well(nursery.live(whole, 2, plant=plant))
    with oss_service() as (service, limits):
        oss = OssConfig(endpoint=service.endpoint, limiter=LimiterConfig(folder=limits), first_backoff_seconds=0.05)
        checkpoint = replace(whole.checkpoint, upload=ADDRESS, transfer_seconds=60.0)
        if how == "killed":
            checkpoint = replace(checkpoint, upload_bytes_per_second=SLOW)
        run = replace(whole, run_dir=str(folder / "lost"), checkpoint=checkpoint, data=replace(whole.data, oss=oss))
        start = _starter(nursery, service, plant)
        first = replace(run, stop_after_steps=CUT)
        if how == "killed":
            killed = start(first, lambda: _half_done(service), None)
            assert not killed, "the kill never came"
        assert start(first, None, None)
        if how == "damaged":
            name = max(name for name in service.names() if name.endswith("/language.00001.safetensors"))
            service.put(name, service.get(name)[:-1] + bytes([service.get(name)[-1] ^ 1]))
        unsound = _unsound(service, Remote(address=ADDRESS, oss=oss), folder, how == "damaged")
        shutil.rmtree(run.run_dir)
        assert start(run, None, True)
        lines = (Path(run.run_dir) / "metrics.jsonl").read_text().splitlines()
        found = json.loads(lines[0])["step"] - 1
    return Stored(
        apart=apart(Path(whole.run_dir), Path(run.run_dir), since=found).largest, unsound=unsound, from_step=found
    )


def _starter(
    nursery: Nursery, service: OssService, plant: str | None
) -> Callable[[RunConfig, Callable[[], bool] | None, bool | None], bool]:
    def start(run: RunConfig, until: Callable[[], bool] | None, resume: bool | None) -> bool:
        given = (service.environment,)
        life = nursery.live(run, 2, before=with_environment, given=given, until=until, plant=plant, resume=resume)
        return life.ended_well if until is not None else well(life).ended_well

    return start


def _half_done(service: OssService) -> bool:
    """Some files of a later commit than the first are in the bucket, and its list of files is not."""
    time.sleep(0.05)
    names = service.names()
    folders = {name.split("/")[1] for name in names if name.endswith(".safetensors")}
    listed = {name.split("/")[1] for name in names if name.endswith(f"/{FILES}")}
    return bool(listed) and bool(folders - listed)


def _unsound(service: OssService, remote: Remote, folder: Path, damaged: bool) -> int:
    """How many of these do not hold: the newest commit in the bucket is CUT's, and what is fetched is the newest that
    is not damaged, whole. Which older ones are there is for the uploads' speed: the newest of those that wait is sent.
    """
    sealed = sorted({name.split("/")[1] for name in service.names() if name.endswith("/COMMIT")}, reverse=True)
    path = fetch_newest(remote, folder / "fetched", lambda _: None, 30.0)
    return int(step_of(sealed[0]) != CUT) + int(path.name != sealed[damaged]) + len(problems(path))
