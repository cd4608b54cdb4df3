"""Saves beside training: what is copied, what is referred to, and what becomes of those that fail."""

import errno
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.prove.context import Worlds
from tests.train.toy_layouts import Layout, ToyRank, differing, one, truth
from train.checkpoint import commits, disk, entries, pruning
from train.checkpoint.contents import Outcome
from train.checkpoint.entries import Writer
from train.checkpoint.load import find_commit, load_optimizer, load_weights, read_tensors
from train.checkpoint.run import RunCheckpoints
from train.checkpoint.save import Saver
from train.errors import CheckpointError

VISION = "vision.patch_embed.weight"


def checkpoints(toy: ToyRank, run: Path, **options: object) -> tuple[RunCheckpoints, list[Outcome]]:
    told: list[Outcome] = []
    writer = Writer(tp_rank=toy.tp_rank, dp_rank=toy.dp_rank, dp_size=toy.layout.dp)
    settings = {"frozen": toy.frozen, "keep": 99, "commit_seconds": 30.0} | options
    made = RunCheckpoints(run, toy.parameters, toy.boxes, toy, writer=writer, tell=told.append, **settings)  # type: ignore[arg-type]
    return made, told


def is_whole(run: Path) -> bool:
    commit = find_commit(run, tell=lambda _: None)
    toy = one()
    load_weights(commit, toy.parameters, toy.boxes)  # type: ignore[arg-type]
    load_optimizer(commit, toy.boxes, toy)  # type: ignore[arg-type]
    return not differing(toy)


def test_what_is_written_is_the_state_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = one().fill()
    made, _ = checkpoints(toy, tmp_path)
    go_on = threading.Event()
    make_folder = disk.make_folder
    monkeypatch.setattr(disk, "make_folder", lambda path: (go_on.wait(60), make_folder(path)))
    made.save(1, {}, "")
    for tensor in [*toy.parameters.values(), *(t for share in toy.held for t in share.tensors.values())]:
        tensor.fill_(3.0)
    go_on.set()
    made.finish()
    assert is_whole(tmp_path)


def test_a_run_that_had_nothing_to_do_has_nothing_to_wait_for(tmp_path: Path) -> None:
    made, told = checkpoints(one(), tmp_path)
    assert made.finish() is None and not told and not list(tmp_path.iterdir())


def test_training_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = checkpoints(one().fill(), tmp_path)
    free_bytes, go_on = disk.free_bytes, threading.Event()
    # The first look at the disk: the main thread must not hang in that either.
    monkeypatch.setattr(disk, "free_bytes", lambda path: (go_on.wait(60), free_bytes(path))[1])
    began = time.monotonic()
    made.save(1, {}, "")
    longer = 2 * (time.monotonic() - began) + 0.1
    made.poll()
    assert not told and not go_on.is_set()
    poll, looks = Saver.poll, list[float]()

    def look(saver: Saver) -> None:
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > longer:
            go_on.set()
        poll(saver)

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "poll", look)
        made.save(2, {}, "")  # this one waits for the first
    assert go_on.is_set() and [outcome.step for outcome in told] == [1]
    made.finish()
    assert told[0].stall_seconds < longer < told[1].stall_seconds and told[1].fault is None
    assert told[0].nbytes == sum(p.stat().st_size for p in told[0].path.glob("*.safetensors")) - headers(told[0].path)


def headers(path: Path) -> int:
    return sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in path.glob("*.safetensors"))


def test_frozen_parts_are_written_once_and_kept_while_they_are_referred_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = one().fill()
    made, _ = checkpoints(toy, tmp_path, keep=2)
    paths = {}
    for step in (1, 2, 3, 4):
        made.save(step, {}, "")
        paths[step] = made.finish().path
    file = "vision.00000.safetensors"
    assert (paths[1] / file).exists() and not any((paths[step] / file).exists() for step in (2, 3, 4))
    assert [attempt.step for attempt in commits.attempts(tmp_path)] == [4, 3]
    assert {path.name for path in paths[1].iterdir()} == {file, commits.PRUNED} and not paths[2].exists()
    assert is_whole(tmp_path) and torch.equal(
        read_tensors(paths[4]).read(VISION), truth("weight", VISION, torch.bfloat16)
    )
    monkeypatch.chdir(tmp_path)  # recipes name run folders so
    resumed, _ = checkpoints(toy, tmp_path, keep=2, resumed=find_commit("."))
    resumed.save(5, {}, "")
    assert not (resumed.finish().path / file).exists()
    toy.parameters[f"local.{VISION}"].add_(1.0)
    for step in (6, 7):
        resumed.save(step, {}, "")
        paths[step] = resumed.finish().path
    assert (paths[6] / file).exists() and not (paths[7] / file).exists(), "it changed, once"
    assert not paths[1].exists(), "nobody refers to it any more"
    (paths[6] / file).write_bytes(b"other")
    assert any(file in problem for problem in commits.problems(paths[7]))


def test_a_file_that_is_gone_is_not_referred_to_but_written_anew(tmp_path: Path) -> None:
    made, told = checkpoints(one().fill(), tmp_path, keep=3)
    made.save(1, {}, "")
    first = made.finish()
    assert first is not None
    (first.path / "vision.00000.safetensors").unlink()  # by hand, or with a disk
    for step in (2, 3):
        made.save(step, {}, "")
        made.settle()
    refused, third = told[1:]
    assert refused.fault is not None and f"{first.path.name}/vision.00000.safetensors are not as" in refused.fault
    assert third.fault is None and (third.path / "vision.00000.safetensors").exists()
    assert commits.problems(third.path) == []


def test_a_new_run_refers_to_nothing_of_another(tmp_path: Path) -> None:
    toy = one().fill()
    made, _ = checkpoints(toy, tmp_path / "one")
    made.save(1, {}, "")
    first = made.finish()
    other, _ = checkpoints(toy, tmp_path / "other", resumed=commits.open_commit(first.path))
    other.save(1, {}, "")
    assert (other.finish().path / "vision.00000.safetensors").exists()


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = checkpoints(one().fill(), tmp_path)
    made.save(1, {}, "")
    made.finish()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda _: 100)
        made.save(2, {}, "")
        with pytest.raises(CheckpointError, match=r"it takes .* GB, .* has 1e-07 GB left"):
            made.finish()
    assert find_commit(tmp_path).step == 1 and not list(tmp_path.glob("checkpoints/step_00000002.*"))
    made.save(3, {}, "")
    made.finish()
    assert find_commit(tmp_path).step == 3 and [outcome.fault is None for outcome in told] == [True, False, True]


def test_what_a_failed_save_left_goes_and_room_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of so many bytes, as the kernel has it: what fits is written, the rest is refused; deleting gives back."""
    made, told = checkpoints(one(frozen=()).fill(), tmp_path, keep=1)
    made.save(1, {}, "")
    first = made.finish().path
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    capacity = size + size // 2
    write_block = disk.write_block

    def write_if_there_is_room(descriptor: int, block: disk.Bytes) -> None:
        used = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        write_block(descriptor, block[: max(0, capacity - used)])
        if used + len(block) > capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "write_block", write_if_there_is_room)
    for step in (2, 3):
        made.save(step, {}, "")
        with pytest.raises(CheckpointError, match="No space left on device"):
            made.finish()
        assert is_whole(tmp_path) and find_commit(tmp_path).path == first
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [first.name]
    capacity *= 2
    made.save(4, {}, "")
    assert made.finish().step == 4 and [outcome.fault is None for outcome in told] == [True, False, False, True]


def test_deleting_older_ones_is_no_part_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = checkpoints(one().fill(), tmp_path, keep=1)
    made.save(1, {}, "")
    made.finish()
    go_on, prune = threading.Event(), pruning.prune
    monkeypatch.setattr(pruning, "prune", lambda *given, **named: (go_on.wait(60), prune(*given, **named)))
    made.save(2, {}, "")
    made.settle()
    assert told[-1].fault is None and find_commit(tmp_path).step == 2
    made.save(3, {}, "")  # while the first still goes
    made.settle()
    assert [outcome.fault for outcome in told] == [None] * 3 and len(commits.attempts(tmp_path)) == 3
    go_on.set()
    made.finish()
    assert [attempt.step for attempt in commits.attempts(tmp_path)] == [3]


def test_no_save_waits_for_another_when_the_run_has_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [math.inf]
    made, told = checkpoints(one().fill(), tmp_path, seconds_left=lambda: left[0])
    made.save(1, {}, "")
    made.finish()
    go_on, make_folder = threading.Event(), disk.make_folder
    monkeypatch.setattr(disk, "make_folder", lambda path: (go_on.wait(60), make_folder(path)))
    made.save(2, {}, "")
    left[0] = 0.0
    started = time.monotonic()
    made.save(3, {}, "")
    assert time.monotonic() - started < 25 and made.newest == 1  # a save may take 30
    assert [outcome.fault for outcome in told[1:]] == [
        "it was still being written when the run had to end",
        "1 rank(s) still hang in the save before",
    ]
    go_on.set()
    assert made._saver._last.tidied.wait(60) and not list(tmp_path.glob("checkpoints/step_00000002.*"))  # type: ignore[union-attr]
    left[0] = math.inf
    made.save(4, {}, "")
    assert made.finish().step == 4


def test_checkpoints_of_some_steps_stay_for_ever(tmp_path: Path) -> None:
    made, _ = checkpoints(one().fill(), tmp_path, keep=1, keep_every=3)
    for step in range(1, 8):
        made.save(step, {}, "")
        made.finish()
    assert [attempt.step for attempt in commits.attempts(tmp_path)] == [7, 6, 3] and is_whole(tmp_path)


FAULTS: dict[str, Callable[[], None]] = {
    "disk full": lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "I/O error": lambda: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))),
}


def struck(real: Callable, calls: Iterator[int], stop_at: int, fault: Callable[[], None], *given: object) -> object:
    if next(calls) == stop_at:
        fault()
    return real(*given)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_place_leaves_the_commit_before_or_the_whole_new(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for stop_at in itertools.count(1):
        made, told = checkpoints(one().fill(), tmp_path / str(stop_at))
        made.save(1, {}, "")
        made.finish()
        calls = itertools.count(1)
        with monkeypatch.context() as patch:
            for name in ("make_folder", "write_block", "sync", "sync_folder", "rename"):
                real = getattr(disk, name)

                patch.setattr(disk, name, partial(struck, real, calls, stop_at, FAULTS[fault]))
            made.save(2, {}, "")
            made._saver.finish()
        assert is_whole(tmp_path / str(stop_at))
        steps.append(find_commit(tmp_path / str(stop_at), tell=lambda _: None).step)
        if told[-1].fault is None:
            break
        made.save(3, {}, "")
        assert made.finish().step == 3, "the run goes on, and so do its saves"
    assert steps.count(1) > 20 and steps == sorted(steps) and steps[-1] == 2


# --- a world of two -----------------------------------------------------------------------------------------------


def a_rank_that_hangs_is_given_up_by_all(rank: int, folder: Path) -> None:
    """A save may take as long as a collective, as in the defaults: no rank may be left alone in one."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=6.0))
    made, told = checkpoints(ToyRank(Layout(dp=2), rank).fill(), folder / "hang", commit_seconds=6.0, group=group)
    made.save(1, {}, "")
    first = made.finish()
    release = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            sync = disk.sync
            patch.setattr(disk, "sync", lambda descriptor: (release.wait(60), sync(descriptor)))
        started = time.monotonic()
        made.save(2, {}, "")
        made.save(3, {}, "")  # waits for the one before, and is left out
        assert 5.9 < time.monotonic() - started < 50
        assert "rank 1 did not write its part in time" in told[-2].fault  # type: ignore[operator]
        assert told[-1].step == 3 and told[-1].fault == "1 rank(s) still hang in the save before"
        dist.barrier()
        assert list(folder.glob("hang/checkpoints/step_00000002.*")), "a rank that hangs may still write there"
        release.set()
        assert made._saver._last.written.wait(60)  # type: ignore[union-attr]
    dist.barrier()
    made.save(4, {}, "")
    assert made.finish().fault is None
    told_why: list[str] = []
    assert find_commit(folder / "hang", tell=told_why.append).step == 4 and first.path.exists()


def a_slow_seal_is_one_for_all_or_for_none(rank: int, folder: Path) -> None:
    made, told = checkpoints(ToyRank(Layout(dp=2), rank).fill(), folder / "slow")

    def until_given_up(path: Path, to: Path) -> None:
        """COMMIT is there for a while before rank 0 can say so."""
        path.rename(to)
        while not made._saver._last.keys.check(["verdict"]):  # type: ignore[union-attr]
            time.sleep(0.01)

    for step, seconds, fault in ((1, 60.0, False), (2, 2.0, True), (3, 60.0, False)):
        made._saver._seconds = seconds
        with pytest.MonkeyPatch.context() as patch:
            if rank == 0 and fault:
                patch.setattr(disk, "rename", until_given_up)
            made.save(step, {}, "")
            made._saver.finish()
            if rank == 0:
                assert made._saver._last.tidied.wait(60)  # type: ignore[union-attr]
        dist.barrier()
        assert (told[-1].fault is not None) == fault, told[-1]
        assert (told[-1].path / commits.COMMIT).exists() == (not fault)
    outcomes: list[object] = [None, None]
    dist.all_gather_object(outcomes, [(each.fault, each.write_seconds) for each in told])
    assert outcomes[0] == outcomes[1] and made.newest == 3


def shares_are_even(rank: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "_WORTH_SPLITTING", 4)
        made, _ = checkpoints(ToyRank(Layout(dp=2), rank).fill(), folder / "even")
        made.save(1, {}, "")
        path = made.finish().path
    weights = [sum(p.stat().st_size for p in path.glob(f"language.{r:05d}.safetensors")) for r in range(2)]
    assert 0.8 < weights[0] / weights[1] < 1.25
    dist.barrier()
    if rank == 0:
        reader = read_tensors(path)
        for name in reader.names():
            if not name.startswith("optimizer."):
                assert torch.equal(reader.read(name), truth("weight", name, torch.bfloat16))


def no_rank_goes_on_while_rank_0_deletes(rank: int, folder: Path) -> None:
    made, _ = checkpoints(ToyRank(Layout(dp=2), rank).fill(), folder / "deletes")
    go_on, prune, gone = threading.Event(), pruning.prune, folder / "gone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "prune", lambda *given, **named: (go_on.wait(60), prune(*given, **named), gone.touch()))
        made.save(1, {}, "")
        made.settle()
        threading.Timer(0.5, go_on.set).start()
        made.finish()
    assert gone.exists()


CASES = (
    a_rank_that_hangs_is_given_up_by_all,
    a_slow_seal_is_one_for_all_or_for_none,
    shares_are_even,
    no_rank_goes_on_while_rank_0_deletes,
)


def in_world(case: Callable[..., None], folder: Path) -> None:
    case(dist.get_rank(), folder)
    dist.barrier()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_world_of_two(case: Callable[..., None], worlds: Worlds, tmp_path: Path) -> None:
    worlds.run(2, in_world, case=case, folder=tmp_path)
