"""From stored pictures and clips to patches. P patches, D floats of a patch."""

from collections.abc import Sequence

import numpy as np

from data.config import ImageConfig, VideoConfig
from data.decode import ClipDecoder
from data.decode_cache import DecodeCache, clip_key
from data.encode import media_grid
from data.errors import SampleError
from data.images import normalisation_table, patchify, resize_image
from data.lengths import capped
from data.pictures import decode_image
from data.types import Bytes, Float32, Grid, MediaSize, RawSample
from data.video import choose_frames


class PatchReader:
    """Decodes, resizes, normalises. Holds the child process that decodes clips, and their cache."""

    def __init__(self, image: ImageConfig, video: VideoConfig) -> None:
        self._image = image
        self._video = video
        self._table = normalisation_table(image)
        self._decoder = ClipDecoder(video.timeout_seconds)
        self._cache = DecodeCache(video.cache_dir, video.cache_bytes) if video.cache_dir and video.cache_bytes else None

    def read(self, raw: RawSample, media: Sequence[int], sizes: Sequence[MediaSize]) -> Float32:
        """float32 (P, D) of the given member numbers, one after the other; raises SampleError."""
        grids = [media_grid(size, self._image, self._video) for size in sizes]
        out = np.empty((sum(grid.num_patches for grid in grids[: len(media)]), self._image.patch_dim), dtype=np.float32)
        self.read_into(raw, media, sizes, out)
        return out

    def read_into(
        self, raw: RawSample, media: Sequence[int], sizes: Sequence[MediaSize], out: Float32, cap: int | None = None
    ) -> None:
        """As `read`, into a slice of a row. `cap`: visual tokens of a picture or clip that had to be shrunk to fit."""
        place = 0
        image, video = capped(self._image, self._video, cap)
        for number, size in zip(media, sizes, strict=False):
            data = raw.media[number][1]
            try:
                grid = media_grid(size, image, video)
                frames = (
                    self._picture(data, size, grid) if size.kind == "image" else self._clip(data, size, grid, video)
                )
            except SampleError as error:
                raise SampleError(f"sample {raw.key}, member {number}: {error}") from error
            patchify(frames, self._image, self._table, out[place : place + grid.num_patches])
            place += grid.num_patches

    def close(self) -> None:
        """End the decoder's process."""
        self._decoder.close()

    def _picture(self, data: bytes, size: MediaSize, grid: Grid) -> Bytes:
        picture = decode_image(data)
        if (picture.height, picture.width) != (size.height, size.width):
            raise SampleError(
                f"picture decodes to {picture.height}x{picture.width} pixels, was indexed as {size.height}x{size.width}"
            )
        return resize_image(picture, grid)

    def _clip(self, data: bytes, size: MediaSize, grid: Grid, video: VideoConfig) -> Bytes:
        indices = choose_frames(size.frames, size.fps, video, self._image.temporal_patch_size)
        if self._cache is None:
            return self._decoder.decode(data, indices, grid.height, grid.width)
        key = clip_key(data, indices, grid.height, grid.width, self._decoder.name)
        frames = self._cache.get(key)
        if frames is None:
            frames = self._decoder.decode(data, indices, grid.height, grid.width)
            self._cache.put(key, frames)
        return frames
