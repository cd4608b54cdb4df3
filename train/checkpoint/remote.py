"""Checkpoints in object storage, and how one comes back to a run's folder. docs/checkpoints.md has the story.

`oss://bucket/prefix` holds what the folder `checkpoints` of a run does, under the same names.
"""

import contextlib
import fcntl
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import MissingObject
from data.store.config import OssConfig
from train.checkpoint import commits, disk, identity
from train.checkpoint.bucket import found_in, whole
from train.checkpoint.commits import COMMIT, FILES, PRUNED, FileEntry

if TYPE_CHECKING:
    from data.store.oss import OssStore
    from train.config import RunConfig

NOTE = "upload.json"
"""In a run's folder: where its checkpoints are uploaded to, for when they are gone from here."""
_RANGE = 8 << 20
_THREADS = 4
_TELL_SECONDS = 30.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A place for checkpoints, and how it is reached. Holds no keys."""

    address: str
    """oss://bucket/prefix."""
    oss: OssConfig

    def store(self) -> "OssStore":
        """To read from. Raises ValueError, StoreError."""
        from data.store.oss import OssStore  # half a second

        return OssStore(self.address, self.oss)

    def write_note(self, run_dir: Path) -> None:
        """Leave word in a run's folder. Raises OSError."""
        run_dir.mkdir(parents=True, exist_ok=True)
        part = run_dir / f"{NOTE}.part"
        # A folder of this machine means nothing to another one.
        told = replace(self, oss=replace(self.oss, limiter=replace(self.oss.limiter, folder=None)))
        part.write_text(json.dumps(asdict(told), indent=1) + "\n", encoding="utf-8")
        part.replace(run_dir / NOTE)


def remote_of(run: "RunConfig") -> Remote | None:
    """Where a recipe has checkpoints uploaded to."""
    if run.checkpoint.upload is None:
        return None
    assert run.data.oss is not None, "train/crosscheck.py has seen to it"
    return Remote(address=run.checkpoint.upload, oss=run.data.oss)


def noted(run_dir: str | Path) -> Remote | None:
    """Where a run's folder says that its checkpoints were uploaded to; None if it says nothing.

    Raises ValueError if what it says cannot be, OSError.
    """
    path = Path(run_dir) / NOTE
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    from train.resolve import oss_from_plain  # half a second

    try:
        told = json.loads(raw)
        if not isinstance(told, dict) or not str(told.get("address")).startswith("oss://"):
            raise ValueError("it has no address")
        return Remote(address=told["address"], oss=oss_from_plain(told.get("oss")))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} does not say where the run's checkpoints were uploaded to: {error}; delete it, and say it by "
            f"`triptych resume oss://BUCKET/PREFIX --run-dir {run_dir} --oss KEY=VALUE ...`"
        ) from error


def fetch_newest(
    remote: Remote,
    run_dir: Path,
    tell: Callable[[str], None],
    seconds: float,
    *,
    check: Callable[[], None] = lambda: None,
    later: bool = False,
) -> Path:
    """Bring the newest checkpoint that is whole back into a run's folder; returns its own.

    One process does it at a time; whoever comes later finds it done. Files that are there as they were written are not
    fetched, so a checkpoint of which a file is damaged here is mended.

    Args:
        tell: hears why a newer one was passed over, and from time to time how far it is.
        seconds: to wait for another process that does it, at most.
        check: called again and again while it fetches; what it raises ends that, and the next try goes on from there.
        later: also where the folder has one that is whole, if that in the bucket is of a later step.

    Raises:
        ValueError: there is none, with what is wrong with each; no room; or the folder is another run's.
        StoreError: the store cannot be reached.
    """
    with _one_at_a_time(run_dir, seconds):
        sealed = (attempt for attempt in commits.attempts(run_dir) if attempt.sealed)
        here = next((attempt for attempt in sealed if not commits.problems(attempt.path)), None)
        if here is not None and not later:
            return here.path
        store = remote.store()
        owner = identity.check_owner(store, remote.address, run_dir)
        reasons = []
        for found in found_in(store.tree("step_")):
            if here is not None and (found.left or found.step <= here.step):
                break
            try:
                if not found.sealed:
                    raise Unusable(f"it was never finished (no {COMMIT})")
                path = _fetch(store, found.name, run_dir / "checkpoints", tell, check)
            except (Unusable, MissingObject) as error:
                reasons.append(f"{found.name}: {error}")
                tell(f"passing over {remote.address}/{found.name}: {error}")
                continue
            if here is not None:
                tell(f"taking {found.name} of {remote.address}, which is of a later step than {here.path.name} here")
            if owner is not None:
                identity.write_id(run_dir, owner)
            return path
        if here is not None:
            tell(f"taking {here.path}, which is whole: {remote.address} has none that can be used of a later step")
            return here.path
        why = "; ".join(reasons) or "there is no checkpoint folder"
        raise ValueError(f"{remote.address} has no checkpoint that can be used: {why}")


class Unusable(ValueError):
    """A checkpoint in the bucket is not what it says."""


def _fetch(store: "OssStore", name: str, folder: Path, tell: Callable[[str], None], check: Callable[[], None]) -> Path:
    """One checkpoint into `folder`. Raises Unusable, StoreError, ValueError if there is no room."""
    path = folder / name
    text, sealed = (whole(store, f"{name}/{file}") for file in (FILES, COMMIT))
    try:
        files = commits.parse_files(text, sealed)
        places = {file: commits.place_of(path, file, entry) for file, entry in files.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(str(error)) from error
    missing = {}
    for file, entry in files.items():
        check()
        if not _is_there(places[file], entry):
            _check_owned(folder / entry.folder, file, entry)
            missing[file] = entry
    _check_room(missing, folder)
    tell(
        f"fetching {store.where(name).partition(' ')[0]}: {_bytes_of(missing) / 1e9:.3g} GB of "
        f"{_bytes_of(files) / 1e9:.3g} GB are not in {path}"
    )
    is_new = not path.exists()
    _unseal(path)
    for owner in {entry.folder for entry in missing.values()} - {name}:
        _make_leftover(folder / owner)
    progress = _Progress(_bytes_of(missing), tell, check)
    with ThreadPoolExecutor(_THREADS) as threads:
        tasks = [threads.submit(_fetch_file, store, places[file], entry, progress) for file, entry in missing.items()]
        try:
            for task in tasks:
                task.result()
        except BaseException as error:
            threads.shutdown(cancel_futures=True)
            if is_new and isinstance(error, Unusable | MissingObject):  # else the next try goes on from here
                shutil.rmtree(path)
            raise
    disk.sync_folder(path)
    commits.seal_as(path, text)
    (path / PRUNED).unlink(missing_ok=True)
    return path


def _is_there(place: Path, entry: FileEntry) -> bool:
    try:
        return disk.digest(place) == entry.digest
    except OSError:
        return False


def _check_owned(folder: Path, file: str, entry: FileEntry) -> None:
    """Raises Unusable if a checkpoint that is here has another file under this name, which must not be written over."""
    try:
        own = commits.listed_files(folder).get(file)
    except (OSError, ValueError):
        return  # it is no checkpoint, or none that can be used
    if own is not None and own.folder == folder.name and own.digest != entry.digest:
        raise Unusable(f"it refers to {folder.name}/{file}, which is another file in that checkpoint as it is here")


def _bytes_of(files: dict[str, FileEntry]) -> int:
    return sum(entry.digest.size for entry in files.values())


def _check_room(missing: dict[str, FileEntry], folder: Path) -> None:
    due, free = _bytes_of(missing), disk.free_bytes(folder)
    if due > free:
        raise ValueError(f"{folder} has {free / 1e9:.3g} GB left, the checkpoint takes {due / 1e9:.3g} GB; make room")


def _unseal(path: Path) -> None:
    """Make a checkpoint folder that does not count, whatever was there."""
    if not path.exists():
        disk.make_folder(path)
    for name in (COMMIT, FILES, f"{COMMIT}.part"):
        (path / name).unlink(missing_ok=True)
    disk.sync_folder(path)


def _make_leftover(path: Path) -> None:
    """A folder for files that others refer to, as pruning leaves it, unless it is a checkpoint itself."""
    if not path.exists():
        disk.make_folder(path)
    if not (path / COMMIT).exists() and not (path / PRUNED).exists():
        disk.write(path / PRUNED, [b""])


def _fetch_file(store: "OssStore", place: Path, entry: FileEntry, progress: "_Progress") -> None:
    where = f"{entry.folder}/{place.name}"
    part = place.with_name(f"{place.name}.part")

    def pieces() -> Iterator[bytes]:
        for start in range(0, entry.digest.size, _RANGE):
            piece = store.read_range(where, start, min(_RANGE, entry.digest.size - start))
            progress.add(len(piece))
            yield piece

    for _ in range(2):  # a bit may have been lost on the way
        part.unlink(missing_ok=True)
        found = disk.write(part, pieces())
        if found == entry.digest:
            disk.rename(part, place)
            return
    part.unlink()
    raise Unusable(
        f"{where} has size {found.size} and crc32c {found.crc32c}, was written with {entry.digest.size} and "
        f"{entry.digest.crc32c}"
    )


class _Progress:
    """Signs of life, and whether to go on. Safe for threads."""

    def __init__(self, total: int, tell: Callable[[str], None], check: Callable[[], None]) -> None:
        self._total, self._tell, self._check = total, tell, check
        self._lock = threading.Lock()
        self._done = 0
        self._told = time.monotonic()

    def add(self, nbytes: int) -> None:
        self._check()
        with self._lock:
            self._done += nbytes
            if time.monotonic() - self._told > _TELL_SECONDS:
                self._told = time.monotonic()
                self._tell(f"fetched {self._done / 1e9:.3g} of {self._total / 1e9:.3g} GB")


@contextlib.contextmanager
def _one_at_a_time(run_dir: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a run's folder, which the kernel takes back when its holder dies. Raises ValueError if late."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "fetching").open("w") as file:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ValueError(f"another process has been fetching into {run_dir} for {seconds:g} s") from None
                time.sleep(_POLL_SECONDS)
        yield
