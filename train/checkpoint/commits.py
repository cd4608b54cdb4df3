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
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.checkpoint import disk

_NAME = re.compile(r"step_(\d{8,})\.[0-9a-f]{8}")
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
COMMIT, FILES, STATE, RECIPE, QUARANTINE = "COMMIT", "files.json", "state.json", "recipe.yaml", "quarantine.jsonl"
VERIFIED = "VERIFIED"
"""Beside what files.json lists: when it was last read through."""
PRUNED = "PRUNED"
"""In a folder of which only what later checkpoints refer to is left."""
LEFT_BEHIND = "LEFT_BEHIND"
"""In a folder of a bucket: the run has gone on from an earlier step since, so this is not where it is."""
_OURS = {".", "..", COMMIT, FILES, VERIFIED, PRUNED, LEFT_BEHIND}
TENSORS = ".safetensors"
FORMAT = 2


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
        return self.text(RECIPE)

    def text(self, name: str) -> str:
        """What a file without tensors holds, wherever it lies."""
        return place_of(self.path, name, self.files[name]).read_text(encoding="utf-8")

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
    """Every checkpoint folder of a run, newest first: by step, then by when it was saved, as state.json says.

    The time of its seal, which is another one once a run was copied, decides where that says nothing.

    `where` may be one checkpoint folder itself, which is then the only one.
    """
    where = Path(where)
    found = []
    for path in [where] if _NAME.fullmatch(where.name) else (where / "checkpoints").glob("step_*"):
        if (match := _NAME.fullmatch(path.name)) and not (path / PRUNED).exists():
            found.append(Attempt(path=path, step=int(match[1]), sealed=(path / COMMIT).exists()))
    steps = Counter(attempt.step for attempt in found)

    def order(attempt: Attempt) -> tuple[int, str, int, str]:
        saved_at, sealed = _times(attempt) if steps[attempt.step] > 1 else ("", 0)
        return attempt.step, saved_at, sealed, attempt.path.name

    return sorted(found, key=order, reverse=True)


def is_sealed(path: Path) -> bool:
    """Whether a checkpoint folder counts now. What was sealed and is not any more was deleted: COMMIT goes first.

    Opened, not looked at: for a minute NFS tells from memory what there is, but what it opens it asks its server for.
    """
    try:
        with (path / COMMIT).open("rb"):
            return True
    except OSError:
        return False


def _times(attempt: Attempt) -> tuple[str, int]:
    """(when it was saved, by its state.json, and when it was sealed, by the file system); nothing where none says."""
    with contextlib.suppress(OSError, ValueError):
        if attempt.sealed:
            told = json.loads((attempt.path / STATE).read_bytes())
            saved_at = told.get("saved_at", "") if isinstance(told, dict) else ""
            return str(saved_at), (attempt.path / COMMIT).stat().st_mtime_ns
    return "", 0


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
    try:
        disk.sync_folder(path)
    except BaseException:
        (path / COMMIT).unlink()  # what is told as failed must not be gone on from, nor be a reason to delete others
        raise


def listed_files(path: Path) -> dict[str, FileEntry]:
    """What files.json says, after checking it against COMMIT. Raises ValueError saying what is wrong."""
    if not (path / COMMIT).is_file():
        raise ValueError("it was never finished (no COMMIT)")
    try:
        raw, sealed = (path / FILES).read_bytes(), (path / COMMIT).read_bytes()
    except OSError as error:  # as of one that is deleted just now: COMMIT goes first
        raise ValueError(f"{Path(error.filename or FILES).name} cannot be read: {error}") from error
    return parse_files(raw, sealed)


def parse_files(raw: bytes, sealed: bytes) -> dict[str, FileEntry]:
    """What the bytes of files.json say, if they are those that the bytes of COMMIT name. Raises ValueError."""
    if hashlib.sha256(raw).hexdigest() != sealed.decode("ascii", errors="replace").strip():
        raise ValueError(f"{FILES} does not have the SHA-256 that {COMMIT} names")
    told = json.loads(raw)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        found = told.get("format") if isinstance(told, dict) else type(told).__name__
        raise ValueError(f"{FILES} has format {found}, this code reads {FORMAT}")
    files = told.get("files")
    if not isinstance(files, dict) or not {STATE, RECIPE} <= files.keys():
        raise ValueError(f"{FILES} does not list {STATE} and {RECIPE}")
    return {name: _entry(name, entry) for name, entry in files.items()}


def _entry(name: str, told: Any) -> FileEntry:
    kinds = {"size": int, "crc32c": str, "folder": str}
    if not isinstance(told, dict) or any(type(told.get(key)) is not kind for key, kind in kinds.items()):
        raise ValueError(f"{FILES} says {told!r} of {name!r}, which is no size, crc32c and folder")
    if not _PLAIN.fullmatch(name) or name in _OURS or not _NAME.fullmatch(told["folder"]):
        raise ValueError(f"{FILES} names {told['folder']!r}/{name!r}, which is no file of a checkpoint")
    return FileEntry(digest=disk.Digest(size=told["size"], crc32c=told["crc32c"]), folder=told["folder"])


def place_of(path: Path, name: str, entry: FileEntry) -> Path:
    """Where a file of the checkpoint at `path` lies. No name leads out of the run: `parse_files` has seen to it."""
    return path / name if entry.folder == path.name else path.parent / entry.folder / name


def problems(path: Path, share: int = 0, shares: int = 1, *, texts_alone: bool = False) -> list[str]:
    """What is wrong with a checkpoint folder; empty when every digest holds.

    Args:
        share: with `shares`, reads only every shares-th file, so that the ranks of a world can divide the work.
        texts_alone: read what holds no tensors, which takes no time.
    """
    try:
        files = listed_files(path)
    except ValueError as error:
        return [str(error)]
    found = []
    for name in sorted(name for name in files if not (texts_alone and name.endswith(TENSORS)))[share::shares]:
        entry = files[name]
        shown = name if entry.folder == path.name else f"{entry.folder}/{name}"
        try:
            actual = disk.digest(place_of(path, name, entry))
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
    files = listed_files(path)
    state = json.loads(place_of(path, STATE, files[STATE]).read_text(encoding="utf-8"))
    return Commit(path=path, step=int(match[1]), state=state, files=files)


def readable(where: str | Path) -> Iterator[Commit]:
    """Sealed checkpoints of a run whose texts are sound, newest first; of their tensors nothing is read."""
    sealed = (attempt.path for attempt in attempts(where) if attempt.sealed)
    return (open_commit(path) for path in sealed if not problems(path, texts_alone=True))


def newest_readable(where: str | Path) -> Commit | None:
    """The first of these."""
    return next(readable(where), None)


def now() -> str:
    """As checkpoints write it down: UTC, in seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def mark_verified(path: Path) -> None:
    """Note that every byte of a sealed checkpoint was just found to be as written; not where nothing can be written."""
    with contextlib.suppress(OSError):
        (path / VERIFIED).write_text(f"{now()}\n", encoding="ascii")


def mark_damaged(path: Path) -> None:
    """Take such a note back."""
    with contextlib.suppress(OSError):
        (path / VERIFIED).unlink()


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
