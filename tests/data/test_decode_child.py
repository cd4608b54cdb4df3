"""The readers of the decoder's process, decord and PyAV: the same frames, in order, upright."""

import io
import struct

import av
import numpy as np
import pytest

from data.visual import decode_child
from tests.data.conftest import clip_bytes


def test_frames_come_in_order_however_many_are_asked_for() -> None:
    clip = clip_bytes(frames=40)
    indices = [0, 0, 1, *range(5, 40)]
    for reader in decode_child.READERS.values():
        levels = [frame.mean() for frame in reader(clip).frames(indices)]
        assert np.abs(np.array(levels) - [10 + i * 235 // 40 for i in indices]).max() < 3


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_clip_filmed_on_its_side_is_shown_upright(turns: int) -> None:
    """As phones store them: frames as the sensor gave them, and how to turn them in the track's header."""
    height, width, one = 96, 128, 1 << 16
    stored = np.zeros((height, width, 3), dtype=np.uint8)
    stored[:48, :64], stored[:48, 64:], stored[48:, :64] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=8)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        container.mux(video.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(video.encode())
    data = bytearray(stream.getvalue())
    # ISO 14496-12: the matrix stands 40 bytes into a version 0 header; clockwise turns, then moved back into view.
    start = data.index(b"tkhd") + 4 + 40
    across, down, x, y = [
        ((one, 0), (0, one), 0, 0),
        ((0, one), (-one, 0), height, 0),
        ((-one, 0), (0, -one), width, height),
        ((0, -one), (one, 0), 0, width),
    ][turns]
    data[start : start + 36] = struct.pack(">9i", *across, 0, *down, 0, x * one, y * one, 1 << 30)
    shown = np.rot90(stored, -turns).astype(int)
    for reader in decode_child.READERS.values():
        assert reader(bytes(data)).probe()[2:] == shown.shape[:2]
        (found,) = reader(bytes(data)).frames([0])
        assert np.abs(found[4::8, 4::8] - shown[4::8, 4::8]).max() < 12, reader
