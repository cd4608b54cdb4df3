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
    """Held from the call of `take` until the process ends."""

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir) / LOCK
        self._file: BinaryIO | None = None

    def take(self) -> None:
        """Raises ValueError if another process has it, OSError if the folder cannot be written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Not truncated: who has it stands there. It goes with the process, and no child inherits it.
        file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        if _locked(file, fcntl.LOCK_EX, self._path):
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()} since {now()}\n".encode())
            self._file = file


def check_lock(run_dir: str | Path) -> None:
    """Raises ValueError if a process trains in the folder now. Leaves nothing there that was not.

    The lock is shared: at the start of a job of many nodes all of them look at once, and none may take another for a
    run.
    """
    path = Path(run_dir) / LOCK
    if path.exists():
        with path.open("rb", buffering=0) as file:
            _locked(file, fcntl.LOCK_SH, path)


def _locked(file: BinaryIO, kind: int, path: Path) -> bool:
    """Lock a file until it is closed; False where there are no locks. Raises ValueError, the file closed, if another
    process keeps it out."""
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        owner = file.read(300).decode(errors="replace").strip()
        file.close()
        if error.errno in _HELD:
            raise ValueError(
                f"{path.parent} is being trained in by {owner or 'another process'}; let that end first, or name "
                f"another run_dir. If its node was lost, delete {path}"
            ) from None
        log.warning("%s cannot be locked, so nothing keeps a second start out: %s", path, error)
        return False
    return True
