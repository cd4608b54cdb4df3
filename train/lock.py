"""One start of a run at a time in its folder: a lock that a process holds as long as it lives.

It is the kernel's lock on a file and not the file itself, so what a dead start leaves behind blocks nobody. File
systems of several nodes (NFS, Lustre with `flock`, GPFS) hand it to the other nodes; one that was mounted with
`local_lock` or `localflock` knows only of its own, and one that has no locks lets every start in, which is said. A node
that was lost keeps its lock over NFS until its lease is over, which a start waits for.
"""

import errno
import fcntl
import logging
import os
import re
import socket
import time
from pathlib import Path
from typing import BinaryIO

from train.checkpoint.commits import now

log = logging.getLogger(__name__)
LOCK = "lock"
"""In the run's folder; says who has it, for people."""
LEASE_SECONDS = 120.0
"""That a start waits for the lock of another node, which may be lost: NFS servers wait 90 s for one to come back."""
_HELD = (errno.EACCES, errno.EAGAIN)
_OWNER = re.compile(r"process (\d+) of (\S+), ranks meet at (.+), since ")
_LOOK_SECONDS = 1.0


class Held(ValueError):
    """Another process has it."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(
            f"{path.parent} is being trained in by {owner or 'another process'}; let that end first, or name another "
            f"run_dir. If its node was lost, delete {path}"
        )
        process, host, self.meeting = match.groups() if (match := _OWNER.match(owner)) else ("", "", "")
        self.is_here = host == socket.gethostname() and Path("/proc", process).exists()
        """It is seen to live."""


class RunLock:
    """Held from the call of `take` until the process ends."""

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir) / LOCK
        self._file: BinaryIO | None = None

    def take(self) -> None:
        """Raises Held if another process has it, OSError if the folder cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + _LOOK_SECONDS
        while True:
            # Not truncated: who has it stands there. It goes with the process, and no child inherits it.
            file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            try:
                is_locked = _locked(file, fcntl.LOCK_EX, self._path)
                break
            except Held:  # by one that looks for a moment, perhaps: `check_lock`
                if time.monotonic() >= end:
                    raise
                time.sleep(_LOOK_SECONDS / 20)
        if is_locked:
            file.truncate(0)
            host = socket.gethostname()
            file.write(f"process {os.getpid()} of {host}, ranks meet at {_meeting()}, since {now()}\n".encode())
            # NFS writes it when the file is closed, else half a minute late: other nodes would find no name there.
            os.fsync(file.fileno())
            self._file = file


def check_lock(run_dir: str | Path, patience: float = 0.0) -> None:
    """Raises Held if a process trains in the folder now. Leaves nothing there that was not.

    The lock is shared: at the start of a job of many nodes all of them look at once, and none may take another for a
    run.

    Args:
        patience: seconds to wait for a lock that no process of this host holds. A start has LEASE_SECONDS: the job of a
            lost node is put back in the queue, and must not fail for what that node has left.
    """
    path, end = Path(run_dir) / LOCK, time.monotonic() + patience
    said = False
    while path.exists():
        try:
            with path.open("rb", buffering=0) as file:
                _locked(file, fcntl.LOCK_SH, path)
            return
        except Held as held:
            if held.is_here or time.monotonic() >= end:
                raise
            if not said:
                log.warning("%s. Waiting for it for %.0f s: that node may be lost", held, patience)
            said = True
        time.sleep(_LOOK_SECONDS)


def is_of_another_start(run_dir: str | Path) -> bool:
    """Whether a process trains in the folder that is none of this job's. For a process that is about to end: closing
    any file gives back all locks on it that the process has."""
    try:
        check_lock(run_dir)
    except Held as held:
        return held.meeting != _meeting()
    return False


def _meeting() -> str:
    """What ranks of one job have in common, and two jobs that live have not."""
    place = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    return ":".join(map(str, place)) if all(place) else f"process {os.getpid()}"


def _locked(file: BinaryIO, kind: int, path: Path) -> bool:
    """Lock a file until it is closed; False where there are no locks. Raises Held, the file closed, if another process
    keeps it out."""
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        owner = file.read(300).decode(errors="replace").strip()
        file.close()
        if error.errno in _HELD:
            raise Held(path, owner) from None
        log.warning("%s cannot be locked, so nothing keeps a second start out: %s", path, error)
        return False
    return True
