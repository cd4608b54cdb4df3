"""The process that decodes clips: started by path, killed without regret, so it imports nothing of ours.

decord can hang where no signal but SIGKILL helps (dmlc/decord #373, #375) and reads ahead without bound (#157).
Requests come on stdin, answers go to stdout: 8 bytes of length and JSON, then `nbytes` of payload if that is set.
"""

import contextlib
import io
import json
import os
import resource
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image

MEMORY_BYTES = 16 << 30
FRAMES_AT_ONCE = 16


class Reader(Protocol):
    """What decord and PyAV both can do."""

    def probe(self) -> tuple[int, float, int, int]:
        """(frames, frames per second, height, width)."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) each, for ascending `indices`; few at a time, as hours of full-size frames fit no memory."""
        ...


class DecordReader:
    """One thread: frames would otherwise be decoded far ahead of what is asked."""

    def __init__(self, data: bytes) -> None:
        import decord

        self._reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)

    def probe(self) -> tuple[int, float, int, int]:
        height, width, _ = self._reader[0].shape
        return len(self._reader), float(self._reader.get_avg_fps()), height, width

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        for start in range(0, len(indices), FRAMES_AT_ONCE):
            yield from self._reader.get_batch(list(indices[start : start + FRAMES_AT_ONCE])).asnumpy()


class PyAvReader:
    """Decodes from the start, so that frame numbers mean what they mean to decord, and turns frames as decord does."""

    def __init__(self, data: bytes) -> None:
        import av

        self._container = av.open(io.BytesIO(data), mode="r")
        self._stream = self._container.streams.video[0]

    def _frames(self) -> Iterator[Any]:
        return self._container.decode(self._stream)

    def probe(self) -> tuple[int, float, int, int]:
        rate = self._stream.average_rate or self._stream.base_rate
        height, width, count = self._stream.height, self._stream.width, 0
        for count, frame in enumerate(self._frames(), start=1):
            if count == 1 and frame.rotation % 180:
                height, width = width, height
        return count, float(rate or 0), height, width

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        times = Counter(indices)  # the frame of a one-frame clip is wanted twice
        for number, frame in enumerate(self._frames()):
            for _ in range(times.pop(number, 0)):
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
            if not times:
                return
        raise ValueError(f"the clip ends before frame {min(times)}")


def choose_decoder() -> tuple[str, type[DecordReader] | type[PyAvReader]]:
    """(name and version, reader): decord, or PyAV where decord cannot be imported."""
    try:
        import decord

        return f"decord {decord.__version__}", DecordReader
    except (ImportError, OSError):
        import av

        return f"pyav {av.__version__}", PyAvReader


def resize_frames(frames: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """uint8 (F, height, width, 3): bicubic, each frame by itself."""
    pictures = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(picture) for picture in pictures])


def answer(reader: type[DecordReader] | type[PyAvReader], request: dict[str, Any], data: bytes) -> tuple[dict, bytes]:
    """The reply to one request; a clip that cannot be decoded is a reply too."""
    try:
        clip = reader(data)
        if request["do"] == "probe":
            frames, fps, height, width = clip.probe()
            return {"frames": frames, "fps": fps, "height": height, "width": width}, b""
        payload = resize_frames(clip.frames(request["indices"]), request["height"], request["width"]).tobytes()
        return {"nbytes": len(payload)}, payload
    except Exception as error:  # the decoders' errors share no base class
        return {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}, b""


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """One message, or None when the other side has gone."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    text = stream.read(length)
    if len(text) < length:
        return None
    message = json.loads(text)
    payload = stream.read(message.get("nbytes", 0))
    return (message, payload) if len(payload) == message.get("nbytes", 0) else None


def write_message(stream: IO[bytes], message: dict[str, Any], payload: bytes) -> None:
    """Inverse of `read_message`."""
    text = json.dumps(message).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    stream.write(payload)
    stream.flush()


def main() -> None:
    """Serve until the parent has gone; stuck in a decoder, only a look at the parent's id can tell."""
    parent = os.getppid()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(ValueError, OSError):  # not every platform limits address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Decoders print to stdout at times; the answers keep the real one to themselves.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    name, reader = choose_decoder()
    write_message(replies, {"decoder": name}, b"")
    while (message := read_message(sys.stdin.buffer)) is not None:
        write_message(replies, *answer(reader, *message))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
