"""Checkpoint folders: made once, sealed last, verified before they are believed.

    RUN/checkpoints/step_00000100.3f9a01c2/   a name is never used twice
        *.distcp  .metadata                   tensors (torch.distributed.checkpoint)
        state.json  recipe.yaml               everything that is not a tensor; the recipe as it was resolved
        files.json                            size and CRC32C of each file above
        COMMIT                                SHA-256 of files.json; appears last, by rename

A folder without COMMIT is an attempt that did not finish. Only sealed folders are ever deleted, and only those beyond
`keep`: an unsealed one may belong to a process that is writing it now.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

_NAME = re.compile(r"step_(\d{8,})\.[0-9a-f]{8}")
_BLOCK = 1 << 22
COMMIT, FILES, STATE, RECIPE = "COMMIT", "files.json", "state.json", "recipe.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One checkpoint folder, sealed or not."""

    path: Path
    step: int
    sealed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A sealed checkpoint whose digests held when it was opened."""

    path: Path
    step: int
    state: dict[str, Any]

    @property
    def recipe(self) -> str:
        """The resolved recipe of the run that wrote it, YAML."""
        return (self.path / RECIPE).read_text(encoding="utf-8")


def new_attempt(run_dir: str | Path, step: int) -> Path:
    """Make an empty folder for a checkpoint after `step` steps, under a name that nothing had before."""
    path = Path(run_dir) / "checkpoints" / f"step_{step:08d}.{secrets.token_hex(4)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    sync_folder(path.parent)
    return path


def attempts(where: str | Path) -> list[Attempt]:
    """Every checkpoint folder of a run, newest first: by step, then by the time of its seal.

    `where` may be one checkpoint folder itself, which is then the only one.
    """
    where = Path(where)
    found = []
    for path in [where] if _NAME.fullmatch(where.name) else (where / "checkpoints").glob("step_*"):
        if match := _NAME.fullmatch(path.name):
            seal = path / COMMIT
            order = (int(match[1]), seal.stat().st_mtime_ns if seal.exists() else 0, path.name)
            found.append((order, Attempt(path=path, step=int(match[1]), sealed=seal.exists())))
    return [attempt for _, attempt in sorted(found, key=lambda pair: pair[0], reverse=True)]


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder, which fsync of the files does not promise."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def digest(path: Path) -> dict[str, Any]:
    """Size and CRC32C of a file as it is read back."""
    checksum = google_crc32c.Checksum()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
            size += len(block)
    return {"size": size, "crc32c": checksum.hexdigest().decode("ascii")}


def seal(path: Path, digests: dict[str, dict[str, Any]]) -> None:
    """Turn an attempt whose files are all on disk into a commit."""
    text = json.dumps({"format": 1, "files": dict(sorted(digests.items()))}, indent=1)
    write_text(path / FILES, text)
    sync_folder(path)
    write_text(path / (COMMIT + ".part"), hashlib.sha256(text.encode()).hexdigest() + "\n")
    (path / (COMMIT + ".part")).rename(path / COMMIT)
    sync_folder(path)


def listed_files(path: Path) -> dict[str, dict[str, Any]]:
    """What files.json says, after checking it against COMMIT. Raises ValueError saying what is wrong."""
    if not (path / COMMIT).is_file():
        raise ValueError("it was never finished (no COMMIT)")
    try:
        raw = (path / FILES).read_bytes()
    except OSError as error:
        raise ValueError(f"{FILES} cannot be read: {error}") from error
    if hashlib.sha256(raw).hexdigest() != (path / COMMIT).read_text(encoding="ascii", errors="replace").strip():
        raise ValueError(f"{FILES} does not have the SHA-256 that {COMMIT} names")
    return json.loads(raw)["files"]


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
        if Path(name).name != name:
            found.append(f"{FILES} names {name!r}, which is not a plain file name")
            continue
        try:
            actual = digest(path / name)
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
            continue
        found += [
            f"{name} has {key} {actual[key]}, was written with {files[name].get(key)}"
            for key in ("size", "crc32c")
            if actual[key] != files[name].get(key)
        ][:1]
    return found


def open_commit(path: Path) -> Commit:
    """A checkpoint folder that was verified before."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint folder; its name should look like step_00000100.3f9a01c2")
    return Commit(path=path, step=int(match[1]), state=json.loads((path / STATE).read_text(encoding="utf-8")))


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


def prune(run_dir: str | Path, keep: int, newest: Path) -> list[Path]:
    """Delete sealed checkpoints that are not among the `keep` (at least 1) that end with `newest`. Returns what went.

    `newest` is the one just sealed. Unsealed folders stay, and so do sealed ones of a later step: those were damaged,
    or left behind on purpose, when this run went on from an earlier one.
    """
    sealed = [attempt for attempt in attempts(run_dir) if attempt.sealed and attempt.path != newest]
    step = open_commit(newest).step
    gone = []
    for attempt in [attempt for attempt in sealed if attempt.step <= step][max(1, keep) - 1 :]:
        # Without its seal first, a folder deleted halfway would look like a damaged commit.
        (attempt.path / COMMIT).unlink()
        sync_folder(attempt.path)
        shutil.rmtree(attempt.path)
        gone.append(attempt.path)
    return gone
