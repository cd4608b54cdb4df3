"""One decoder in one child process, watched: killed at its deadline and above its memory."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from data import decode_child

START_SECONDS = 60.0  # to import a decoder from a cold network file system
LOOK_SECONDS = 0.05  # read-ahead grows by some 100 MB in this time
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

        Raises DecoderMissing, or RuntimeError if the child does not come up at all.
        """
        self._memory_bytes = memory_bytes
        self._closed = False
        self._owner = os.getpid()
        # -P: else the folder of the script, which holds a types.py, would shadow the standard library.
        command = [sys.executable, "-P", str(Path(decode_child.__file__)), decoder, str(memory_bytes)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answered = 0
        try:
            hello, _ = self.ask(None, b"", START_SECONDS)
        except DecoderGone as gone:
            raise RuntimeError(f"the clip decoder does not start ({gone}); try: {' '.join(command)}") from gone
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


class _Watch:
    """A thread beside the blocking read: it kills the child when it is late or large."""

    def __init__(self, child: subprocess.Popen[bytes], seconds: float, memory_bytes: int) -> None:
        self.gone: DecoderGone | None = None
        self._child = child
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decoder-watch", daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        ends = time.monotonic() + self._seconds
        while not self._done.wait(max(0.0, min(LOOK_SECONDS, ends - time.monotonic()))):
            resident = _resident_bytes(self._child.pid)
            if resident > self._memory_bytes:
                text = f"passed its memory of {self._memory_bytes} bytes ({resident} resident)"
                self.gone = DecoderGone("memory", text)
            elif time.monotonic() >= ends:
                self.gone = DecoderGone("deadline", f"passed its deadline of {self._seconds:.1f} s")
            if self.gone is not None:
                self._child.kill()
                return


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # ended, or no such file system
        return 0
