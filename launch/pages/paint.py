"""What the model is shown, as PNG data URLs."""

import base64
import io

import numpy as np
from PIL import Image

from data.config import ImageConfig, VideoConfig
from data.encoding.encode import media_grid
from data.errors import SampleError
from data.loading.media import PatchReader
from data.types import Bytes, Grid, MediaSize, RawSample
from data.visual.images import unpatched

MOST_BYTES = 6_000_000  # of pictures on one page; browsers open more, but slowly
MOST_FRAMES = 4  # of a clip, evenly from first to last


class Painter:
    """Paints the pictures and clips of samples until a page has MOST_BYTES of them."""

    def __init__(self, image: ImageConfig, video: VideoConfig) -> None:
        self._image, self._video = image, video
        self._reader = PatchReader(image, video)
        self._left = MOST_BYTES

    def grid(self, size: MediaSize) -> Grid:
        """The grid a picture or clip has in the row; raises SampleError."""
        return media_grid(size, self._image, self._video)

    def frames(self, size: MediaSize) -> int:
        """Frames of a clip in the row."""
        return self.grid(size).time * self._image.temporal_patch_size

    def urls(self, raw: RawSample, member: int, size: MediaSize) -> list[str]:
        """A picture, or MOST_FRAMES frames of a clip, at the size the model sees.

        Raises SampleError for bytes that cannot be decoded, and if the page has no room left.
        """
        frames = unpatched(self._reader.read(raw, [member], [size]), self.grid(size), self._image)
        chosen = np.linspace(0, len(frames) - 1, min(MOST_FRAMES, len(frames))).round().astype(int)
        urls = [_url(frames[place]) for place in (chosen if size.kind == "video" else [0])]
        needed = sum(map(len, urls))
        if needed > self._left:
            raise SampleError(f"left out: {needed} bytes, and the page has room for {self._left} more")
        self._left -= needed
        return urls

    def close(self) -> None:
        """End the decoder's process."""
        self._reader.close()


def _url(pixels: Bytes) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
