"""What a run comes to after faults in its saves, after kills, on other layouts, and over three stages."""

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parallel.config import ParallelConfig
from tests.harness import save_faults
from tests.harness.lives import LONGEST, Apart, Life, Nursery, apart, kill_in_step, mark_training, run_config
from tests.harness.runs import RunDifference, compare_runs
from train.checkpoint import commits
from train.checkpoint.load import find_commit
from train.config import RunConfig
from train.errors import CheckpointError

FAULT_STEPS = 3
KILLED_STEPS = 220
LAYOUT_STEPS = 8
CUT = 3
"""Step after which the layout changes."""


class LifeFailure(AssertionError):
    """A life that had to end well did not; carries what it said."""


def well(life: Life) -> Life:
    """Raises LifeFailure unless every process ended with 0."""
    if not life.ended_well:
        raise LifeFailure(f"exit codes {life.codes}\n{life.said[-4000:]}")
    return life


# --- faults in a save ---------------------------------------------------------------------------------------------


def fault_run(run_dir: Path, data: Path) -> RunConfig:
    """DP2, stage 2, saved after each of three steps, one commit kept; short limits, because hangs are waited for. As in
    the defaults, a save may take longer than the watch lets a rank wait for another."""
    run = run_config(run_dir, data, "stage2", ParallelConfig(), steps=FAULT_STEPS)
    return replace(
        run,
        checkpoint=replace(run.checkpoint, keep=1, commit_seconds=6.0),
        parallel=replace(run.parallel, timeout_seconds=8.0),
    )


def passed_places(nursery: Nursery, folder: Path, data: Path, plant: str | None = None) -> list[tuple[str, ...]]:
    """The places that each rank passes in a save of an undisturbed run, which stays in folder/undisturbed."""
    notes = folder / "places"
    notes.mkdir(parents=True)
    run = fault_run(folder / "undisturbed", data)
    well(nursery.live(run, 2, before=save_faults.note, given=(str(notes),), plant=plant))
    return [tuple(json.loads((notes / f"{rank}.json").read_text())) for rank in range(2)]


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A run in one of whose saves a fault came."""

    outcome: str
    """What became of the life that was struck, and where the next went on."""
    unlike: int
    """Tensors and steps that are not bit for bit those of the undisturbed run; 1 more for each thing wrong with the
    newest commit, for a save that could not write a file and was not said to have failed, and for a thread that hung
    and ended the job."""
    came: bool
    """The fault was met."""


def struck_run(
    nursery: Nursery, undisturbed: Path, run: RunConfig, rank: int, place: str, kind: str, plant: str | None = None
) -> Struck:
    """Run into the fault, go on if that ended the run, and compare with the undisturbed one."""
    met = Path(f"{run.run_dir}.met")
    life = nursery.live(run, 2, before=save_faults.strike, given=(rank, place, kind, str(met)), plant=plant)
    if None in life.codes:
        raise LifeFailure(f"no end after {LONGEST} s\n{life.said[-4000:]}")
    found = find_commit(run.run_dir, tell=lambda _: None)
    wrong = len(commits.problems(found.path)) + (life.ended_well and not _told(run, place))
    hung = kind == "hang" and place not in save_faults.IN_MAIN_THREAD
    wrong += hung and not life.ended_well and "still hang in the save before" not in life.said
    if life.ended_well:
        outcome = "the run went on to its end"
    else:
        outcome = f"ended ({', '.join(map(str, life.codes))}); gone on from step {found.step}"
        well(nursery.live(run, 2, plant=plant))
    unlike = wrong + _unlike(compare_runs(undisturbed, Path(run.run_dir)))
    return Struck(outcome=outcome, unlike=unlike, came=met.exists())


def _told(run: RunConfig, place: str) -> bool:
    """Whether a save that an error struck at `place` is said to have failed, if it was before its seal."""
    lines = [json.loads(line) for line in (Path(run.run_dir) / "saves.jsonl").read_text().splitlines()]
    failed = any(line["step"] == save_faults.STRUCK_STEP and line["fault"] is not None for line in lines)
    return failed or place in save_faults.AFTER_SEAL


def _unlike(found: RunDifference) -> int:
    return found.weights + found.state + found.rows + found.curves


# --- kills --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A run that was killed again and again."""

    kills: int
    """That came while the run was not over."""
    while_saving: int
    """Of these, with a checkpoint begun and not sealed."""
    difference: RunDifference
    """From the run that was not killed."""


def killed_run(
    nursery: Nursery, folder: Path, data: Path, kills: int, steps: int = KILLED_STEPS, plant: str | None = None
) -> Killed:
    """One run of `steps` steps at a stretch, and one of which both ranks get SIGKILL at random moments, so many times.

    One moment in five lies in the start of a life, three in ten in its first save, the others in the half second after
    its first step has begun.
    """

    def made(name: str) -> RunConfig:
        run = run_config(folder / name, data, "stage2", ParallelConfig(), steps=steps)
        return replace(run, data=replace(run.data, workers=1), checkpoint=replace(run.checkpoint, every_steps=2))

    well(nursery.live(made("whole"), 2, plant=plant))
    run, chance, came, saving = made("killed"), random.Random(0), 0, 0
    for number in range(kills):
        mark = folder / f"training.{number}"
        begun = _unsealed(run)
        moment = _moment(chance, mark, lambda begun=begun: bool(_unsealed(run) - begun))
        life = nursery.live(run, 2, before=mark_training, given=(str(mark),), until=moment, plant=plant)
        came += not life.ended_well
        saving += bool(_unsealed(run) - begun)
    well(nursery.live(run, 2, plant=plant))
    return Killed(kills=came, while_saving=saving, difference=compare_runs(folder / "whole", folder / "killed"))


def _unsealed(run: RunConfig) -> set[str]:
    return {attempt.path.name for attempt in commits.attempts(run.run_dir) if not attempt.sealed}


def _moment(chance: random.Random, mark: Path, is_saving: Callable[[], bool]) -> Callable[[], bool]:
    kind = chance.random()
    if kind < 0.2:
        return _after(chance.uniform(0.0, 2.0), lambda: True)
    return is_saving if kind < 0.5 else _after(chance.uniform(0.0, 0.5), mark.exists)


def _after(seconds: float, has_begun: Callable[[], bool]) -> Callable[[], bool]:
    """Whether so many seconds have gone since `has_begun` first said so."""
    seen: list[float] = []

    def has_come() -> bool:
        if not seen and has_begun():
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] > seconds

    return has_come


# --- damage -------------------------------------------------------------------------------------------------------


def believed_damage(run_dir: Path, scratch: Path, damages: int) -> tuple[int, int]:
    """(believed, wrongly passed over): of so many random flips of one bit and truncations in the newest commit of a
    run, how many leave it the one that is gone on from, and how many lead to another than the one before."""
    chance, run = random.Random(0), scratch / "damaged"
    shutil.copytree(run_dir, run)
    newest, before, *_ = [attempt.path for attempt in commits.attempts(run)]
    files = sorted(path for path in newest.iterdir() if path.stat().st_size)
    believed = wrong = 0
    for number in range(damages):
        # As many in small files as in large ones: a format breaks where its few bytes of structure are.
        path = files[number % len(files)]
        good = path.read_bytes()
        path.write_bytes(_damaged(good, chance))
        chosen = _chosen(run)
        believed += chosen == newest
        wrong += chosen not in (newest, before)
        path.write_bytes(good)
    assert _chosen(run) == newest
    return believed, wrong


def _chosen(run: Path) -> Path | None:
    try:
        return find_commit(run, tell=lambda _: None).path
    except (ValueError, CheckpointError):
        return None


def _damaged(good: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return good[: chance.randrange(len(good))]
    place, bit = chance.randrange(len(good)), chance.randrange(8)
    return good[:place] + bytes([good[place] ^ (1 << bit)]) + good[place + 1 :]


# --- layouts and stages -------------------------------------------------------------------------------------------


def changed_layout(
    nursery: Nursery,
    folder: Path,
    data: Path,
    stage: str,
    tied: bool,
    layouts: tuple[tuple[int, ParallelConfig], tuple[int, ParallelConfig]],
    plant: str | None = None,
) -> tuple[Apart, int]:
    """(how far the steps after the change are from those of the run that went on, tensors of another bit at the end).

    Args:
        layouts: (processes, layout) before and after step CUT.
    """
    (size, before), (other_size, after) = layouts
    run = run_config(folder / "whole", data, stage, before, steps=LAYOUT_STEPS, tie_embeddings=tied)
    run = replace(run, checkpoint=replace(run.checkpoint, keep=99), data=replace(run.data, workers=1))
    well(nursery.live(run, size, plant=plant))
    moved = replace(run, run_dir=str(folder / "moved"), parallel=replace(after, timeout_seconds=30.0))
    shutil.copytree(run.run_dir, moved.run_dir)
    for attempt in commits.attempts(moved.run_dir):
        if attempt.step > CUT:
            shutil.rmtree(attempt.path)
    well(nursery.live(moved, other_size, plant=plant))
    whole, other = Path(run.run_dir), Path(moved.run_dir)
    return apart(whole, other, since=CUT), _unlike(compare_runs(whole, other)) if size == other_size else -1


CHAIN_LAYOUTS: tuple[tuple[str, int, ParallelConfig], ...] = (
    ("stage1", 4, ParallelConfig(tensor=2)),
    ("stage2", 4, ParallelConfig(tensor=2, pipeline=2)),
    ("stage3", 4, ParallelConfig()),
)


def chain(nursery: Nursery, folder: Path, data: Path, *, parallel: bool, plant: str | None = None) -> list[Path]:
    """Three stages one after the other, each from the weights of the one before; the folders of their runs.

    Args:
        parallel: on CHAIN_LAYOUTS, where one rank of each is killed once in a step; else in one process.
    """
    runs: list[Path] = []
    for number, (stage, size, layout) in enumerate(CHAIN_LAYOUTS):
        run = run_config(folder / stage, data, stage, layout if parallel else ParallelConfig(), steps=5)
        if runs:
            run = replace(run, init=replace(run.init, from_run=str(runs[-1])))
        if parallel:
            life = nursery.live(run, size, before=kill_in_step, given=(number + 1, 4), plant=plant)
            assert not life.ended_well, "the kill never came"
        well(nursery.live(run, size if parallel else 1, plant=plant))
        runs.append(Path(run.run_dir))
    return runs
