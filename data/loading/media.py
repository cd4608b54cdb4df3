"""From stored pictures and clips to patches. P patches, D floats of a patch."""

from collections.abc import Sequence

import numpy as np

from data.config import ImageConfig, VideoConfig
from data.encoding.encode import media_grid
from data.errors import SampleError
from data.plan.lengths import capped
from data.types import Bytes, Float32, Grid, MediaSize, RawSample
from data.visual.cache_file import Use
from data.visual.decode import ClipDecoder, ClipRequest
from data.visual.decode_cache import CacheCounters, DecodeCache, frame_key
from data.visual.images import normalisation_table, patchify, resize_image
from data.visual.pictures import decode_image
from data.visual.video import choose_frames

WAIT_MARGIN_SECONDS = 5.0  # beyond the clip's deadline: the other process may have to start its decoder


class PatchReader:
    """Decodes, resizes, normalises. Holds the child process that decodes clips, and their cache."""

    def __init__(self, image: ImageConfig, video: VideoConfig) -> None:
        self._image = image
        self._video = video
        self._table = normalisation_table(image)
        self._cache = DecodeCache(video.cache_dir, video.cache_bytes) if video.cache_dir and video.cache_bytes else None
        self._decoder = ClipDecoder(
            video.timeout_seconds,
            timeout_per_second=video.timeout_per_second,
            memory_bytes=video.memory_bytes,
            verdicts=self._cache.verdicts if self._cache is not None else None,
        )

    @property
    def counters(self) -> CacheCounters:
        """Of the decode cache since the start; zeros without one."""
        return self._cache.counters if self._cache is not None else CacheCounters()

    def read(self, raw: RawSample, media: Sequence[int], sizes: Sequence[MediaSize]) -> Float32:
        """float32 (P, D) of the given member numbers, one after the other; raises SampleError."""
        grids = [media_grid(size, self._image, self._video) for size in sizes]
        out = np.empty((sum(grid.num_patches for grid in grids[: len(media)]), self._image.patch_dim), dtype=np.float32)
        self.read_into(raw, media, sizes, out)
        return out

    def read_into(
        self,
        raw: RawSample,
        media: Sequence[int],
        sizes: Sequence[MediaSize],
        out: Float32,
        use: Use | None = None,
        cap: int | None = None,
    ) -> None:
        """As `read`, into a slice of a row.

        Args:
            use: when the plan reads this sample, and when it does so again.
            cap: visual tokens of a picture or clip that had to be shrunk to fit a row.
        """
        place = 0
        image, video = capped(self._image, self._video, cap)
        for number, size in zip(media, sizes, strict=False):
            data = raw.media[number][1]
            try:
                grid = media_grid(size, image, video)
                if size.kind == "image":
                    frames = self._picture(data, size, grid)
                else:
                    frames = self._clip(data, size, grid, video, use)
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

    def _clip(self, data: bytes, size: MediaSize, grid: Grid, video: VideoConfig, use: Use | None) -> Bytes:
        request = ClipRequest(
            data=data,
            indices=choose_frames(size.frames, size.fps, video, self._image.temporal_patch_size),
            height=grid.height,
            width=grid.width,
            seconds=size.frames / size.fps,
        )
        if self._cache is None:
            return self._decoder.decode(request).frames
        digest = request.digest
        frames = self._cached(request, digest, use)
        if frames is not None:
            return frames
        with self._cache.flight(digest, self._decoder.deadline(request) + WAIT_MARGIN_SECONDS) as waited:
            if waited and (frames := self._cached(request, digest, use)) is not None:
                return frames
            decoded = self._decoder.decode(request, digest)
            self._cache.put(frame_key(digest, decoded.decoder), decoded.frames, decoded.decoder, use)
            return decoded.frames

    def _cached(self, request: ClipRequest, digest: str, use: Use | None) -> Bytes | None:
        """Raises SampleError for a clip that is known to be undecodable."""
        assert self._cache is not None
        return self._cache.get(frame_key(digest, self._decoder.expected(request, digest)), use)
