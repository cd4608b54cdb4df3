"""What processes that do one job for another have in common: how they are started, and that they end with it."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes that this thread starts in here never hear the signals that ask a run to end.

    Those reach whole process groups and jobs, while a run goes on to the end of its step and needs its data: a decoder
    that ended by one would leave a placeholder in the place of its clip. Blocked from before their first instruction.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_child(
    module: str, *arguments: str, pass_fds: tuple[int, ...] = (), pipes: bool = True
) -> "subprocess.Popen[bytes]":
    """Run `module` of this checkout, with pipes to its stdin and stdout or without; no fork of a process with threads.

    -P: else a `data` in the working folder would be run instead. Signals are for the parent, which ends its children.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with deaf():
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else None,
            env=os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},  # a core each
            pass_fds=pass_fds,
            process_group=0,
        )


def finish_child(child: "subprocess.Popen[bytes]", seconds: float = 10.0) -> None:
    """Tell a child that there is nothing more to do and let it put away what it has; past the deadline end it."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    end_child(child)


def end_child(child: "subprocess.Popen[bytes]") -> None:
    """End it, whatever it is doing."""
    child.kill()
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None and not stream.closed:
            with contextlib.suppress(BrokenPipeError):  # of bytes that it did not live to read
                stream.close()


def leave_with_parent() -> None:
    """End this process when its parent has gone, even if the main thread is stuck in C code."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def limit_memory(nbytes: int) -> None:
    """Let allocations beyond `nbytes` of address space fail, where the platform can."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


def keep_stdout() -> IO[bytes]:
    """The real stdout, unbuffered, for replies alone: what libraries print goes to stderr from here on."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return replies
