"""The process that decodes clips: started by path, killed without regret, so it imports nothing of ours.

decord can hang where no signal but SIGKILL helps (dmlc/decord #373, #375) and reads ahead without bound (#157).
Requests come on stdin, answers go to stdout: 8 bytes of length and JSON, then `nbytes` of payload if that is set.
Pipes rather than shared memory: nothing is left when either side is killed, nothing can be full, and they cost 10 ms
where decoding and resizing take 1300 (32 frames of a 720p clip); a memory file would cost 4.
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

FRAMES_AT_ONCE = 16
SPACE_PER_MEMORY = 2  # address space holds stacks and arenas that are never touched
# Containers with an index of frames. In MPEG-TS decord 0.6.0 starts 16 frames late, for one.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class Reader(Protocol):
    """What decord and PyAV both can do. Frame i is the i-th that is shown, from 0, whatever its time stamp."""

    def probe(self) -> tuple[int, float, int, int]:
        """(frames, frames per second, height, width)."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) each, for ascending `indices`; few at a time, as hours of full-size frames fit no memory."""
        ...


class DecordReader:
    """One thread: frames would otherwise be decoded far ahead of what is asked. Refuses where its numbers are wrong."""

    def __init__(self, data: bytes) -> None:
        import decord

        packets = count_exact_frames(data)
        self._reader = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
        if len(self._reader) != packets:
            raise ValueError(f"decord counts {len(self._reader)} frames where the clip has {packets} packets")

    def probe(self) -> tuple[int, float, int, int]:
        height, width, _ = self._reader[0].shape
        return len(self._reader), float(self._reader.get_avg_fps()), height, width

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        if indices and indices[-1] >= len(self._reader):
            raise ValueError(f"the clip has {len(self._reader)} frames, frame {indices[-1]} was indexed")
        for start in range(0, len(indices), FRAMES_AT_ONCE):
            yield from self._reader.get_batch(list(indices[start : start + FRAMES_AT_ONCE])).asnumpy()


class PyAvReader:
    """Decodes from the start, so that frame i is the i-th that is shown, and turns frames as decord does."""

    def __init__(self, data: bytes) -> None:
        import av

        self._container = av.open(io.BytesIO(data), mode="r")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1

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
        count = 0
        for number, frame in enumerate(self._frames()):
            for _ in range(times.pop(number, 0)):
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
            if not times:
                return
            count = number + 1
        raise ValueError(f"the clip has {count} frames, frame {max(times)} was indexed")


READERS: dict[str, type[DecordReader] | type[PyAvReader]] = {"decord": DecordReader, "pyav": PyAvReader}


def count_exact_frames(data: bytes) -> int:
    """How many frames there are, if decord's numbers for them are right; raises ValueError if that is not sure.

    decord seeks to the key frame before a time stamp and counts on from there. Frames that follow a key frame in the
    file and are shown before it (an open GOP: usual in HEVC, and an option of x264) then shift every number, by 4 in a
    clip measured here. Packets are read, nothing is decoded: 10 ms for 600 of 720p.
    """
    import av

    with av.open(io.BytesIO(data), mode="r") as container:
        if container.format.name not in INDEXED_FORMATS:
            raise ValueError(f"decord's frame numbers are not exact in {container.format.name}")
        stream = container.streams.video[0]
        shown: set[int] = set()
        last_key: int | None = None
        for packet in container.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None or packet.pts in shown or packet.is_discard or packet.is_corrupt:
                raise ValueError(f"packet {len(shown)} has no time stamp of its own, or is not to be shown")
            if packet.is_keyframe:
                last_key = packet.pts
            elif last_key is None or packet.pts < last_key:
                raise ValueError(f"packet {len(shown)} is shown before the key frame it follows (open GOP)")
            shown.add(packet.pts)
        if stream.frames not in (0, len(shown)):
            raise ValueError(f"the header says {stream.frames} frames, {len(shown)} are there")
        return len(shown)


def decoder_name(decoder: str) -> str:
    """Versions of all that decides the pixels."""
    import PIL

    if decoder == "decord":
        import decord

        return f"decord {decord.__version__}, pillow {PIL.__version__}"
    import av

    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"pyav {av.__version__}, avcodec {codec}, pillow {PIL.__version__}"


def resize_frames(frames: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """uint8 (F, height, width, 3): bicubic, each frame by itself."""
    pictures = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(picture) for picture in pictures])


def answer(
    reader: type[DecordReader] | type[PyAvReader], request: dict[str, Any], data: bytes
) -> tuple[dict, bytes | memoryview]:
    """The reply to one request; a clip that cannot be decoded is a reply too."""
    try:
        clip = reader(data)
        if request["do"] == "probe":
            frames, fps, height, width = clip.probe()
            return {"frames": frames, "fps": fps, "height": height, "width": width}, b""
        resized = resize_frames(clip.frames(request["indices"]), request["height"], request["width"])
        return {"nbytes": resized.nbytes}, resized.reshape(-1).data
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


def write_message(stream: IO[bytes], message: dict[str, Any], payload: bytes | memoryview) -> None:
    """Inverse of `read_message`."""
    text = json.dumps(message).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    stream.write(payload)
    stream.flush()


def main() -> None:
    """Serve until the parent has gone; stuck in a decoder, only a look at the parent's id can tell."""
    decoder, memory_bytes = sys.argv[1], int(sys.argv[2])
    parent = os.getppid()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    space = memory_bytes * SPACE_PER_MEMORY
    with contextlib.suppress(ValueError, OSError):  # not every platform limits address space
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not fill the disk
    # Decoders print to stdout at times; the answers keep the real one to themselves.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        name = decoder_name(decoder)
    except (ImportError, OSError) as error:
        write_message(replies, {"error": str(error)}, b"")
        return
    with contextlib.suppress(BrokenPipeError):  # the parent has gone, or has closed us
        write_message(replies, {"decoder": name}, b"")
        while (message := read_message(sys.stdin.buffer)) is not None:
            write_message(replies, *answer(READERS[decoder], *message))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
