"""One decoder in one child process, watched: killed at its deadline and above its memory."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from data.child import deaf
from data.visual import decode_child

START_SECONDS = 60.0  # to import a decoder from a cold network file system
START_TRIES = 2
LOOK_SECONDS = 0.05  # read-ahead grows by some 100 MB in this time
LATEST = 10  # times its deadline, after which a child ends however little of it it could run
_PAGE = os.sysconf("SC_PAGE_SIZE")

Reply = tuple[dict[str, Any], bytes]
Why = Literal["deadline", "memory", "died", "closed"]


class DecoderGone(Exception):
    """The child ended without an answer."""

    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


class DecoderMissing(Exception):
    """The decoder cannot be imported here."""


class DecoderProcess:
    """Answers one request at a time; `close` may come from another thread."""

    def __init__(self, decoder: str, memory_bytes: int) -> None:
        """Start the child and wait until it has imported `decoder`, a key of `decode_child.READERS`.

        Raises DecoderMissing, or DecoderGone if the child does not come up.
        """
        self._memory_bytes = memory_bytes
        self._closed = False
        self._owner = os.getpid()
        # -P: else the folder of the script, which holds a types.py, would shadow the standard library.
        command = [sys.executable, "-P", str(Path(decode_child.__file__)), decoder, str(memory_bytes)]
        with deaf():
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answered = 0
        self.spent = 0.0
        """Seconds on the account of the last request; see _Watch."""
        try:
            hello, _ = self.ask(None, b"", START_SECONDS)
        except DecoderGone as gone:
            raise DecoderGone(gone.why, f"it does not start ({gone}); try: {' '.join(command)}") from None
        if "error" in hello:
            self.close()
            raise DecoderMissing(hello["error"])
        self.name: str = hello["decoder"]
        self.answered = 0

    @property
    def resident_bytes(self) -> int:
        """Memory that the child holds now; 0 when it has ended."""
        return _resident_bytes(self._child.pid)

    @property
    def lives(self) -> bool:
        """Whether another request can be sent, from this process: a fork's would meet its parent's in the pipe."""
        return not self._closed and self._owner == os.getpid() and self._child.poll() is None

    def ask(self, request: dict[str, Any] | None, data: bytes, seconds: float) -> Reply:
        """One request (None: the greeting) and its reply; raises DecoderGone. SIGKILL ends both pipes."""
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        reply = None
        with _Watch(child, seconds, self._memory_bytes) as watch, contextlib.suppress(OSError, ValueError):
            if request is not None:
                decode_child.write_message(child.stdin, request, data)
            reply = decode_child.read_message(child.stdout)
        self.spent = watch.spent
        if reply is not None:
            self.answered += 1
            if watch.gone is not None:  # killed as it answered: the next clip needs a living child
                self.close()
            return reply
        closed = self._closed
        self.close()
        if watch.gone is not None:
            raise watch.gone
        if closed:
            raise DecoderGone("closed", "the decoder was closed")
        raise DecoderGone("died", f"the decoder died (exit status {child.returncode})")

    def close(self) -> None:
        """End the child, whatever it is doing; in a fork of the process that started it, leave it alone."""
        self._closed = True
        if self._owner != os.getpid():
            return
        child = self._child
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                # A child that ended while it was written to leaves bytes behind, which closing tries to send.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def start_decoder(decoder: str, memory_bytes: int) -> DecoderProcess:
    """A child that can be asked, started anew once if it does not come up: somebody may have stopped or killed it.

    Raises DecoderMissing, or RuntimeError if none comes up.
    """
    for tried in range(START_TRIES):
        try:
            return DecoderProcess(decoder, memory_bytes)
        except DecoderGone as gone:
            if tried + 1 == START_TRIES:
                raise RuntimeError(f"the clip decoder {decoder} cannot be used: {gone}") from gone
    raise AssertionError


class _Watch:
    """A thread beside the blocking read: it kills the child when it is late or large.

    Time in which the child was ready and had no core is not on its account: on a host with more to do than cores, sound
    clips would pass their deadlines, and be remembered as clips that cannot be decoded.
    """

    def __init__(self, child: subprocess.Popen[bytes], seconds: float, memory_bytes: int) -> None:
        self.gone: DecoderGone | None = None
        self._child = child
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._started = time.monotonic()
        self._waits = _waits(child.pid)
        self._kept_waiting = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder-watch", daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def spent(self) -> float:
        """Seconds on the child's account so far."""
        return time.monotonic() - self._started - self._kept_waiting

    def _run(self) -> None:
        latest = self._started + LATEST * self._seconds
        while not self._done.wait(max(0.0, min(LOOK_SECONDS, self._seconds - self.spent))):
            now = _waits(self._child.pid)
            longest = max((wait - self._waits.get(thread, 0.0) for thread, wait in now.items()), default=0.0)
            self._kept_waiting = max(self._kept_waiting, longest)
            resident = _resident_bytes(self._child.pid)
            if resident > self._memory_bytes:
                text = f"passed its memory of {self._memory_bytes} bytes ({resident} resident)"
                self.gone = DecoderGone("memory", text)
            elif self.spent >= self._seconds or time.monotonic() >= latest:
                self.gone = DecoderGone("deadline", f"passed its deadline of {self._seconds:.1f} s")
            if self.gone is not None:
                self._child.kill()
                return


def _waits(pid: int) -> dict[str, float]:
    """Seconds that each thread of a process was ready and had no core; empty where the kernel does not tell."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended, or one of its threads has
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # ended, or no such file system
        return 0
