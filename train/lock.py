"""One start of a run at a time in its folder: a lock that a process holds as long as it lives.

It is the kernel's lock on a file and not the file itself, so what a dead start leaves behind blocks nobody. File
systems of several nodes (NFS, Lustre with `flock`, GPFS) hand it to the other nodes; one that was mounted with
`local_lock` or `localflock` knows only of its own, and one that has no locks lets every start in, which is said. A node
that was lost keeps its lock over NFS until the server gives it up.
"""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import BinaryIO

from train.checkpoint.commits import now

log = logging.getLogger(__name__)
LOCK = "lock"
"""In the run's folder; says who has it, for people."""
_HELD = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """Held from the call of `take` until `release`, or until the process ends."""

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir) / LOCK
        self._file: BinaryIO | None = None

    def take(self) -> None:
        """Raises ValueError if another process has it, OSError if the folder cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Not truncated: who has it stands there. It goes with the process, and no child inherits it.
        file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = file.read(300).decode(errors="replace").strip()
            file.close()
            if error.errno in _HELD:
                raise ValueError(
                    f"{self._path.parent} is being trained in by {owner or 'another process'}; let that end first, or "
                    f"name another run_dir. If its node was lost, delete {self._path}"
                ) from None
            log.warning("%s cannot be locked, so nothing keeps a second start out: %s", self._path, error)
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()} since {now()}\n".encode())
        self._file = file

    def release(self) -> None:
        """Let the next one in."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def check_lock(run_dir: str | Path) -> None:
    """Raises ValueError if a process trains in the folder now. Leaves no folder behind that was not there."""
    if (Path(run_dir) / LOCK).exists():
        lock = RunLock(run_dir)
        lock.take()
        lock.release()
