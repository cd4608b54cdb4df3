"""M-RoPE positions of one sample (Qwen2-VL, `get_rope_index`). T tokens, three axes: time, height, width."""

from collections.abc import Sequence

import numpy as np

from data.types import Int64


def mrope_positions(num_tokens: int, spans: Sequence[tuple[int, tuple[int, int, int]]]) -> Int64:
    """(3, T) ids. `spans` are (first token, merged (time, height, width)) of the visual runs, in order.

    Text counts on all axes alike; what follows a visual run starts at the largest id of all three axes plus 1.
    transformers 5.23 goes on by height and width alone, so it differs for clips with more time steps than
    rows and than columns.
    """
    positions = np.empty((3, num_tokens), dtype=np.int64)
    place, offset = 0, 0
    for start, (time, height, width) in spans:
        positions[:, place:start] = np.arange(offset, offset + start - place)
        offset += start - place
        end = start + time * height * width
        block = positions[:, start:end].reshape(3, time, height, width)  # a view: splitting a dim never copies
        block[0] = np.arange(offset, offset + time)[:, None, None]
        block[1] = np.arange(offset, offset + height)[:, None]
        block[2] = np.arange(offset, offset + width)
        offset += max(time, height, width)
        place = end
    positions[:, place:] = np.arange(offset, offset + num_tokens - place)
    return positions
