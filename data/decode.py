"""Decoding clips under a deadline, in a child process that can be killed."""

import contextlib
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from data import decode_child
from data.errors import SampleError
from data.types import Bytes, Int64, MediaSize

log = logging.getLogger(__name__)

START_SECONDS = 60.0  # to import a decoder from a cold network file system
CLIPS_PER_CHILD = 500  # decoders leak; a new child costs 0.3 s


class ClipDecoder:
    """One child at a time, started on first use. Not for use by several threads at once."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._clips = 0
        self._name: str | None = None

    @property
    def name(self) -> str:
        """Decoder and version, part of the cache key: two decoders give two sets of pixels."""
        if self._name is None:
            self._start()
        assert self._name is not None
        return self._name

    def probe(self, data: bytes) -> MediaSize:
        """Frames, fps and size of a clip; raises SampleError."""
        reply, _ = self._ask({"do": "probe", "nbytes": len(data)}, data)
        return MediaSize(
            kind="video", height=reply["height"], width=reply["width"], frames=reply["frames"], fps=reply["fps"]
        )

    def decode(self, data: bytes, indices: Int64, height: int, width: int) -> Bytes:
        """uint8 (F, height, width, 3), the frames at `indices`, resized. Raises SampleError, also past the deadline."""
        request = {"do": "decode", "indices": indices.tolist(), "height": height, "width": width, "nbytes": len(data)}
        _, payload = self._ask(request, data)
        if len(payload) != len(indices) * height * width * 3:
            raise SampleError(f"decoder gave {len(payload)} bytes for {len(indices)} frames of {height}x{width}")
        return np.frombuffer(payload, dtype=np.uint8).reshape(len(indices), height, width, 3)

    def close(self) -> None:
        """End the child, whatever it is doing."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    # A child that ended while it was written to leaves bytes behind, which closing tries to send.
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        if self._child is None or self._clips >= CLIPS_PER_CHILD:
            self._start()
        self._clips += 1
        reply = self._exchange(self._timeout, request, data)
        if reply is None:
            self.close()
            raise SampleError(
                f"decoder died or passed its deadline of {self._timeout} s on a clip of {len(data)} bytes"
            )
        if "error" in reply[0]:
            raise SampleError(f"clip cannot be decoded: {reply[0]['error']}")
        return reply

    def _exchange(self, seconds: float, request: dict | None, data: bytes) -> tuple[dict[str, Any], bytes] | None:
        """One request and its reply; SIGKILL at the deadline ends both pipes, so nothing here waits longer."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            child.kill()

        alarm = threading.Timer(seconds, give_up)
        alarm.daemon = True
        alarm.start()
        try:
            if request is not None:
                decode_child.write_message(child.stdin, request, data)
            return decode_child.read_message(child.stdout)
        except (BrokenPipeError, ValueError):
            return None
        finally:
            alarm.cancel()
            if late.is_set():  # even if the reply came just in time: the next clip needs a living child
                self.close()

    def _start(self) -> None:
        self.close()
        # -P: else the folder of the script, which holds a types.py, would shadow the standard library.
        command = [sys.executable, "-P", str(Path(decode_child.__file__))]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._clips = 0
        hello = self._exchange(START_SECONDS, None, b"")
        if hello is None:
            self.close()
            raise RuntimeError(f"the clip decoder does not start; try: {' '.join(command)}")
        if self._name is None and not hello[0]["decoder"].startswith("decord"):
            log.warning("decord cannot be imported here; clips are decoded by %s", hello[0]["decoder"])
        self._name = hello[0]["decoder"]
