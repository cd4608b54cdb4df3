"""The room of the decode cache: who may write how much, and what goes when there is no more.

One process at a time counts, evicts and names: who holds the lock on `room`, a file that says how many bytes are in
use. A file being written is there at full size from the start, under a temporary name and locked by its writer: it
counts, and once the writer is dead the lock is free and the file goes. Whoever dies leaves the account too high, never
too low; the next one who finds the room full counts anew.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.visual.cache_file import NEVER, Mark, open_own, read_marks

LOW_WATER = 0.9  # an eviction looks at every file, so it frees more than it must; what it frees is missed later
LOCK_SECONDS = 5.0  # an evictor takes a second for 50,000 files; one that was stopped must not stop the others
RUN_SECONDS = 3600.0  # a run not heard of for so long has no say in what is kept
LATE_STEPS = 100  # by so many, ranks and workers of a run may be apart; what is later than that was given up

HORIZON_SECONDS = 60.0  # how long what an eviction learnt of the plan is believed; then the next one learns anew

_FOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{32}\.clip")
_PART = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{16}\.tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A stored file, as the evictor sees it."""

    path: Path
    nbytes: int
    used: float
    """When it was last read, seconds since the epoch."""
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What the file `room` says."""

    used: int
    """Bytes in use."""
    horizon: int = NEVER
    """Steps ahead: what is needed later than that went last time, so while there is little room it is not let in."""
    until: int = 0
    """Seconds since the epoch at which the horizon is forgotten."""


class Room:
    """At most `max_bytes` of the cache's own files under `folder`, what is being written included."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self.evicted = 0
        self.evicted_bytes = 0

    def sweep(self) -> None:
        """Count what is there, and remove what dead writers left. Raises OSError."""
        with self._locked() as lock:
            if lock is not None:
                _write_account(lock, self._make_room(0))

    @contextlib.contextmanager
    def reserve(self, key: str, nbytes: int, ahead: int | None = None) -> Iterator[tuple[int, Path] | None]:
        """A file of `nbytes` to write and to publish, as (descriptor, path); None if there is no room for it.

        Removed afterwards if it still has its temporary name. `ahead`: steps to its next use, if known. Raises OSError.
        """
        reserved = self._reserve(key, nbytes, ahead) if nbytes <= self._max_bytes else None
        try:
            yield reserved
        finally:
            if reserved is not None:
                descriptor, part = reserved
                with contextlib.suppress(OSError):
                    part.unlink()
                os.close(descriptor)

    def _reserve(self, key: str, nbytes: int, ahead: int | None) -> tuple[int, Path] | None:
        with self._locked() as lock:
            if lock is None:
                return None
            account = _read_account(lock)
            if account is not None and self._declines(account, nbytes, ahead):
                return None
            if account is None or account.used + nbytes > self._max_bytes:
                account = self._make_room(nbytes)
            if account.used + nbytes > self._max_bytes:
                _write_account(lock, account)
                return None
            # Before the file is there: a writer killed in between would have written what nobody counts.
            _write_account(lock, replace(account, used=account.used + nbytes))
            try:
                return self._allocate(key, nbytes)
            except OSError as error:
                _write_account(lock, account)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            # The disk is smaller than the bound, or others fill it: live within what there is.
            account = self._make_room(nbytes, bound=account.used)
            _write_account(lock, replace(account, used=account.used + nbytes))
            return self._allocate(key, nbytes)

    def publish(self, part: Path, path: Path) -> bool:
        """Give what was reserved and written its name; False if another held the lock for too long. Raises OSError."""
        with self._locked() as lock:  # who counts must not miss a file that changes its name meanwhile
            if lock is not None:
                part.rename(path)
            return lock is not None

    def _declines(self, account: Account, nbytes: int, ahead: int | None) -> bool:
        """What the next eviction would remove is not written: an epoch larger than the cache would be, every time."""
        if ahead is None or ahead < account.horizon or time.time() >= account.until:
            return False
        return account.used + nbytes > self._max_bytes * LOW_WATER

    def _allocate(self, key: str, nbytes: int) -> tuple[int, Path]:
        folder = self._folder / key[:2]
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise OSError(errno.ELOOP, f"{folder} is a link")
        part = folder / f".{key}.{os.urandom(8).hex()}.tmp"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that the writer lives
            _allocate_bytes(descriptor, nbytes)
        except OSError:
            part.unlink()
            os.close(descriptor)
            raise
        return descriptor, part

    def _make_room(self, wanted: int, bound: int | None = None) -> Account:
        """The account, counted anew; if `wanted` bytes do not fit below the bound, after an eviction."""
        bound = self._max_bytes if bound is None else min(bound, self._max_bytes)
        paths, used = self._scan()
        if used + wanted <= bound:
            return Account(used=used)
        horizon = NEVER
        for entry, ahead in eviction_order([entry for path in paths if (entry := _entry(path)) is not None]):
            if used + wanted <= bound * LOW_WATER or not used:
                break
            with contextlib.suppress(OSError):
                entry.path.unlink()  # those who have it open read on
                used -= entry.nbytes
                self.evicted += 1
                self.evicted_bytes += entry.nbytes
                horizon = horizon if ahead is None else min(horizon, ahead)
        return Account(used=used, horizon=horizon, until=int(time.time() + HORIZON_SECONDS))

    def _scan(self) -> tuple[list[Path], int]:
        """Stored files and bytes in use. What lies here under other names is nobody's business."""
        paths, used = [], 0
        with os.scandir(self._folder) as folders:
            names = [item.name for item in folders if _FOLDER.fullmatch(item.name) and _is_folder(item)]
        for name in names:
            with contextlib.suppress(OSError), os.scandir(self._folder / name) as items:
                for item in items:
                    part = _PART.fullmatch(item.name)
                    if part and _abandoned(Path(item.path)):
                        continue
                    if part or _FILE.fullmatch(item.name):
                        with contextlib.suppress(OSError):
                            used += item.stat(follow_symlinks=False).st_size
                            if not part:
                                paths.append(Path(item.path))
        return paths, used

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The lock file, locked, or None if another holds it for too long. The kernel takes it from the dead."""
        descriptor = os.open(self._folder / "room", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            yield descriptor if lock_within(descriptor, LOCK_SECONDS) else None
        finally:
            unlock(descriptor)


def lock_within(descriptor: int, seconds: float) -> bool:
    """Take an exclusive flock, or give up after `seconds`."""
    ends = time.monotonic() + seconds
    wait = 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= ends:
                return False
        time.sleep(min(wait, 0.02))
        wait *= 2


def unlock(descriptor: int) -> None:
    """Give a lock back and close. Both, as a process that was forked in between holds the descriptor too."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def eviction_order(entries: Sequence[Entry]) -> list[tuple[Entry, int | None]]:
    """Those to go first, first, each with the steps to its next use, None if that is not known.

    First what no run needs again, then what no run has planned (the longest unread), then what is needed last; where
    runs share an item, the nearest use counts. A run's present is the latest step at which it read anything here.
    """
    present: dict[bytes, int] = {}
    heard: dict[bytes, float] = {}
    for entry in entries:
        for mark in entry.marks:
            present[mark.run] = max(present.get(mark.run, 0), mark.step)
            heard[mark.run] = max(heard.get(mark.run, 0.0), mark.clock)
    now = time.time()

    ranked: list[tuple[int, float, Entry, int | None]] = []
    for entry in entries:
        alive = [mark for mark in entry.marks if now - heard[mark.run] < RUN_SECONDS]
        planned = [mark.next_step - present[mark.run] for mark in alive if mark.next_step != NEVER]
        ahead = min((max(steps, 0) for steps in planned if steps > -LATE_STEPS), default=None)
        if ahead is not None:
            ranked.append((2, float(-ahead), entry, ahead))
        else:
            ranked.append((0 if alive and not planned else 1, entry.used, entry, None))
    return [(entry, ahead) for _, _, entry, ahead in sorted(ranked, key=lambda item: item[:2])]


def _entry(path: Path) -> Entry | None:
    """None for a file that only looks like one of the cache's."""
    descriptor = open_own(path)
    if descriptor is None:
        return None
    try:
        status = os.fstat(descriptor)
        return Entry(path=path, nbytes=status.st_size, used=status.st_mtime, marks=read_marks(descriptor))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _abandoned(part: Path) -> bool:
    """Remove a file whose writer is dead; whether it was."""
    with contextlib.suppress(OSError):
        descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
            return True
        finally:
            os.close(descriptor)
    return False


def _allocate_bytes(descriptor: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, nbytes)  # counts all the same; a full disk then shows as it is written


def _is_folder(item: "os.DirEntry[str]") -> bool:
    return item.is_dir(follow_symlinks=False)


def _read_account(lock: int) -> Account | None:
    text = os.pread(lock, 64, 0)
    return (
        Account(**dict(zip(("used", "horizon", "until"), map(int, text.split()), strict=True)))
        if re.fullmatch(rb"\d{20} \d{20} \d{20}", text)
        else None
    )


def _write_account(lock: int, account: Account) -> None:
    os.pwrite(lock, b"%020d %020d %020d" % (account.used, account.horizon, account.until), 0)
