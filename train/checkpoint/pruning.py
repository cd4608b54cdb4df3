"""Deleting checkpoints, but for the files that others refer to."""

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from train.checkpoint import disk
from train.checkpoint.commits import COMMIT, PRUNED, Attempt, attempts, listed_files
from train.checkpoint.retention import Policy

ABANDONED_SECONDS = 86400.0
"""An unfinished folder that nothing was written to for so long has no writer any more."""
_OPEN = ".nfs"
"""NFS keeps a deleted file under such a name as long as a process of the same node reads it; it cannot be deleted."""


def prune(
    run_dir: str | Path, keep: int, newest: Path, *, every: int | None = None, held: Iterable[str] = ()
) -> list[Path]:
    """Delete sealed checkpoints that are not among the `keep` (at least 1) that end with `newest`. Returns what went.

    `newest` is the one just sealed. Sealed ones of a later step stay: those were damaged, or left behind on purpose,
    when this run went on from an earlier one. Those of steps that `every` divides stay for ever, and so do now those
    whose names are in `held`. Files that a remaining one refers to stay where they are. Unfinished folders go once
    nothing has been written to them for a day.
    """
    sealed = [(attempt.path.name, attempt.step) for attempt in readable(run_dir)]
    policy = Policy(last=keep, every=every, names=frozenset(held))
    gone = [newest.parent / name for name in policy.superseded(sealed, newest.name)]
    delete(run_dir, gone)
    clear_abandoned(run_dir)
    return gone


def readable(run_dir: str | Path) -> list[Attempt]:
    """Sealed checkpoints that say which files they have, newest first."""

    def says(path: Path) -> bool:
        try:
            listed_files(path)
        except (ValueError, OSError):
            return False
        return True

    return [attempt for attempt in attempts(run_dir) if attempt.sealed and says(attempt.path)]


def clear_abandoned(run_dir: str | Path) -> list[Path]:
    """Delete unfinished folders whose writer has gone. Returns what went."""
    gone = []
    for attempt in attempts(run_dir):
        with suppress(FileNotFoundError):
            if not attempt.sealed and time.time() - attempt.path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(attempt.path)
                gone.append(attempt.path)
    return gone


def delete(run_dir: str | Path, paths: Iterable[Path]) -> None:
    """Delete sealed checkpoints of a run but for the files that others refer to.

    One whose files.json is damaged can never be gone on from, so what it refers to does not count. A run and a tool may
    do so at once: what the other one has deleted is no fault.
    """
    for path in paths:
        # A folder deleted halfway would look like a damaged commit, so this is said first, by a name: a full disk has
        # no room for another file.
        with suppress(FileNotFoundError):
            disk.rename(path / COMMIT, path / PRUNED)
            disk.sync_folder(path)
    needed = _needed(run_dir)  # looked for last, as the run may have sealed another one meanwhile
    for marker in (Path(run_dir) / "checkpoints").glob(f"step_*/{PRUNED}"):
        folder = marker.parent
        with suppress(FileNotFoundError):
            for file in folder.iterdir():
                if file != marker and not file.name.startswith(_OPEN) and (folder.name, file.name) not in needed:
                    file.unlink(missing_ok=True)
            if all(file == marker for file in folder.iterdir()):
                shutil.rmtree(folder)


def _needed(run_dir: str | Path) -> set[tuple[str, str]]:
    """(folder, file) of all that sealed checkpoints refer to.

    Looked at until nothing was sealed or deleted meanwhile: a run that seals one and deletes the one before may do so
    between two looks into its folder, and neither would count.
    """
    needed: set[tuple[str, str]] = set()
    seen: set[Path] | None = None
    while (sealed := {attempt.path for attempt in attempts(run_dir) if attempt.sealed}) != seen:
        seen, needed = sealed, set()
        for path in sealed:
            with suppress(OSError, ValueError):
                needed |= {(entry.folder, name) for name, entry in listed_files(path).items()}
    return needed
