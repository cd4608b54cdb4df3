"""Short clips: a card with a digit moves over a still photograph, leaves at one side and comes back at the other.

It starts on a cell of the grid and moves along a diagonal by half a cell between two frames that the reader takes. So
at every moment its place is uniform over the same places whatever the direction (half a cell to the left and to the
right of whole cells are the same places): no single frame, not even the first, says anything about the way it moves.
"""

from __future__ import annotations

import io

import av
import numpy as np

FRAMES_PER_SECOND = 5
NUM_FRAMES = 10  # 2 s: at 2 frames/s the reader takes frames 0, 3, 6, 9
STEP = 14  # pixels between two frames that the reader takes: one patch, so that one visual token sees the way
FRAMES_PER_STEP = 3
DIRECTIONS = {"up left": (-1, -1), "up right": (-1, 1), "down left": (1, -1), "down right": (1, 1)}  # (rows, columns)


def move_card(scene: np.ndarray, card: np.ndarray, start: tuple[int, int], direction: str) -> np.ndarray:
    """Frames uint8 (NUM_FRAMES, height, width, 3); `start` is the (row, column) of the card's first cell."""
    size = card.shape[0]
    height, width, _ = scene.shape
    rows, columns = DIRECTIONS[direction]
    frames = np.repeat(scene[None], NUM_FRAMES, axis=0)
    for number, frame in enumerate(frames):
        shift = number * STEP / FRAMES_PER_STEP
        y = round(start[0] * size + rows * shift) + np.arange(size)
        x = round(start[1] * size + columns * shift) + np.arange(size)
        frame[np.ix_(y % height, x % width)] = card
    return frames


def encode_h264(frames: np.ndarray) -> bytes:
    """An MP4 file of the frames; height and width must be even (4:2:0 colour)."""
    stream_bytes = io.BytesIO()
    # The encoder's output depends on its number of threads; and with mbtree on, its vector code sometimes lets what was
    # in memory before change a few bytes of frames whose sides are no multiples of 16 (3 of 120 clips when tried).
    options = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(stream_bytes, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return stream_bytes.getvalue()
