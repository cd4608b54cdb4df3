"""Checkpoint folders: made once, sealed last, verified before they are believed. docs/checkpoints.md has the format.

    RUN/checkpoints/step_00000100.3f9a01c2/   a name is never used twice
        *.safetensors                         boxes of tensors (train/checkpoint/tensors.py)
        state.json  recipe.yaml               everything that is not a tensor; the recipe as it was resolved
        quarantine.jsonl                      samples that could not be used so far
        files.json                            size and CRC32C of each file, and where it lies
        COMMIT                                SHA-256 of files.json; appears last, by rename

A folder without COMMIT is an attempt that did not finish. A file that did not change since an earlier checkpoint of the
run is not written again: files.json names the folder that has it, and it stays there when that checkpoint is pruned.
"""

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.checkpoint import disk
from train.checkpoint.retention import Policy

_NAME = re.compile(r"step_(\d{8,})\.[0-9a-f]{8}")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
COMMIT, FILES, STATE, RECIPE, QUARANTINE = "COMMIT", "files.json", "state.json", "recipe.yaml", "quarantine.jsonl"
VERIFIED = "VERIFIED"
"""Beside what files.json lists: when it was last read through."""
PRUNED = "PRUNED"
"""In a folder of which only what later checkpoints refer to is left."""
TENSORS = ".safetensors"
FORMAT = 2
ABANDONED_SECONDS = 86400.0
"""An unfinished folder that nothing was written to for so long has no writer any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One checkpoint folder, sealed or not."""

    path: Path
    step: int
    sealed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """What files.json says of one file."""

    digest: disk.Digest
    folder: str
    """Name of the checkpoint folder that has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A sealed checkpoint whose digests held when it was opened."""

    path: Path
    step: int
    state: dict[str, Any]
    files: Mapping[str, FileEntry]

    @property
    def recipe(self) -> str:
        """The resolved recipe of the run that wrote it, YAML."""
        return (self.path / RECIPE).read_text(encoding="utf-8")

    @property
    def tensor_files(self) -> dict[str, Path]:
        """Files of boxes, by their name in files.json."""
        return {name: place_of(self.path, name, entry) for name, entry in self.files.items() if name.endswith(TENSORS)}


def attempt_path(run_dir: str | Path, step: int, token: str) -> Path:
    """Folder of a checkpoint after `step` steps; `token` is eight hexadecimal digits that nothing had before."""
    path = Path(run_dir) / "checkpoints" / f"step_{step:08d}.{token}"
    assert _NAME.fullmatch(path.name), path.name
    return path


def step_of(name: str) -> int | None:
    """The step of a checkpoint folder by its name; None if it is the name of something else."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def attempts(where: str | Path) -> list[Attempt]:
    """Every checkpoint folder of a run, newest first: by step, then by the time of its seal.

    `where` may be one checkpoint folder itself, which is then the only one.
    """
    where = Path(where)
    found = []
    for path in [where] if _NAME.fullmatch(where.name) else (where / "checkpoints").glob("step_*"):
        if (match := _NAME.fullmatch(path.name)) and not (path / PRUNED).exists():
            seal = path / COMMIT
            order = (int(match[1]), seal.stat().st_mtime_ns if seal.exists() else 0, path.name)
            found.append((order, Attempt(path=path, step=int(match[1]), sealed=seal.exists())))
    return [attempt for _, attempt in sorted(found, key=lambda pair: pair[0], reverse=True)]


def seal(path: Path, files: Mapping[str, FileEntry]) -> None:
    """Turn an attempt whose files are all on disk into a commit."""
    listed = {
        name: {"size": entry.digest.size, "crc32c": entry.digest.crc32c, "folder": entry.folder}
        for name, entry in sorted(files.items())
    }
    seal_as(path, json.dumps({"format": FORMAT, "files": listed}, indent=1).encode())


def seal_as(path: Path, text: bytes) -> None:
    """The same with the bytes of files.json as they are to be."""
    disk.write(path / FILES, [text])
    disk.write(path / (COMMIT + ".part"), [hashlib.sha256(text).hexdigest().encode() + b"\n"])
    disk.sync_folder(path)
    disk.rename(path / (COMMIT + ".part"), path / COMMIT)
    disk.sync_folder(path)


def listed_files(path: Path) -> dict[str, FileEntry]:
    """What files.json says, after checking it against COMMIT. Raises ValueError saying what is wrong."""
    if not (path / COMMIT).is_file():
        raise ValueError("it was never finished (no COMMIT)")
    try:
        raw = (path / FILES).read_bytes()
    except OSError as error:
        raise ValueError(f"{FILES} cannot be read: {error}") from error
    return parse_files(raw, (path / COMMIT).read_bytes())


def parse_files(raw: bytes, sealed: bytes) -> dict[str, FileEntry]:
    """What the bytes of files.json say, if they are those that the bytes of COMMIT name. Raises ValueError."""
    if hashlib.sha256(raw).hexdigest() != sealed.decode("ascii", errors="replace").strip():
        raise ValueError(f"{FILES} does not have the SHA-256 that {COMMIT} names")
    told = json.loads(raw)
    if told.get("format") != FORMAT:
        raise ValueError(f"it has format {told.get('format')}, this code reads {FORMAT}")
    return {
        name: FileEntry(digest=disk.Digest(size=entry["size"], crc32c=entry["crc32c"]), folder=entry["folder"])
        for name, entry in told["files"].items()
    }


def place_of(path: Path, name: str, entry: FileEntry) -> Path:
    """Where a file of the checkpoint at `path` lies. Raises ValueError for a name that leaves the run."""
    if not _PLAIN.fullmatch(name) or not _NAME.fullmatch(entry.folder):
        raise ValueError(f"{FILES} names {entry.folder!r}/{name!r}, which is no file of a checkpoint")
    return path / name if entry.folder == path.name else path.parent / entry.folder / name


def problems(path: Path, share: int = 0, shares: int = 1) -> list[str]:
    """What is wrong with a checkpoint folder; empty when every digest holds.

    `share` of `shares` reads only every shares-th file, so that the ranks of a world can divide the work.
    """
    try:
        files = listed_files(path)
    except ValueError as error:
        return [str(error)]
    found = []
    for name in sorted(files)[share::shares]:
        entry = files[name]
        shown = name if entry.folder == path.name else f"{entry.folder}/{name}"
        try:
            actual = disk.digest(place_of(path, name, entry))
        except ValueError as error:
            found.append(str(error))
            continue
        except OSError as error:
            found.append(f"{shown} cannot be read: {error.strerror}")
            continue
        if actual.size != entry.digest.size:
            found.append(f"{shown} has size {actual.size}, was written with {entry.digest.size}")
        elif actual.crc32c != entry.digest.crc32c:
            found.append(f"{shown} has crc32c {actual.crc32c}, was written with {entry.digest.crc32c}")
    return found


def open_commit(path: Path) -> Commit:
    """A checkpoint folder that was verified before."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint folder; its name should look like step_00000100.3f9a01c2")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Commit(path=path, step=int(match[1]), state=state, files=listed_files(path))


def now() -> str:
    """As checkpoints write it down: UTC, in seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def mark_verified(path: Path) -> None:
    """Note that every byte of a sealed checkpoint was just found to be as written; not where nothing can be written."""
    with contextlib.suppress(OSError):
        (path / VERIFIED).write_text(f"{now()}\n", encoding="ascii")


def verified_at(path: Path) -> str | None:
    """When `mark_verified` was last called."""
    try:
        return (path / VERIFIED).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def choose(
    candidates: Iterable[Attempt], check: Callable[[Path], list[str]], tell: Callable[[str], None]
) -> Attempt | None:
    """The first of `candidates` that `check` finds nothing wrong with; says why each one before it was passed over."""
    for attempt in candidates:
        wrong = check(attempt.path)
        if not wrong:
            return attempt
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        tell(f"passing over {attempt.path.name}: {wrong[0]}{more}")
    return None


def prune(
    run_dir: str | Path, keep: int, newest: Path, *, every: int | None = None, held: Iterable[str] = ()
) -> list[Path]:
    """Delete sealed checkpoints that are not among the `keep` (at least 1) that end with `newest`. Returns what went.

    `newest` is the one just sealed. Sealed ones of a later step stay: those were damaged, or left behind on purpose,
    when this run went on from an earlier one. Those of steps that `every` divides stay for ever, and so do now those
    whose names are in `held`. Files that a remaining one refers to stay where they are. Unfinished folders go once
    nothing has been written to them for a day.
    """
    found = attempts(run_dir)
    sealed = [(attempt.path.name, attempt.step) for attempt in found if attempt.sealed]
    policy = Policy(last=keep, every=every, names=frozenset(held))
    gone = [newest.parent / name for name in policy.superseded(sealed, newest.name)]
    delete(run_dir, gone)
    for attempt in found:
        if not attempt.sealed and time.time() - attempt.path.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(attempt.path)
    return gone


def delete(run_dir: str | Path, paths: Iterable[Path]) -> None:
    """Delete sealed checkpoints of a run but for the files that others refer to.

    Raises ValueError, with nothing deleted but the seals, if what a damaged one refers to cannot be known.
    """
    for path in paths:
        # A folder deleted halfway would look like a damaged commit, so this is said first.
        disk.write(path / PRUNED, [b""])
        (path / COMMIT).unlink()
        disk.sync_folder(path)
    sealed = [attempt.path for attempt in attempts(run_dir) if attempt.sealed]
    needed = {(entry.folder, name) for path in sealed for name, entry in listed_files(path).items()}
    for marker in (Path(run_dir) / "checkpoints").glob(f"step_*/{PRUNED}"):
        folder = marker.parent
        for file in folder.iterdir():
            if file != marker and (folder.name, file.name) not in needed:
                file.unlink()
        if all(file == marker for file in folder.iterdir()):
            shutil.rmtree(folder)
