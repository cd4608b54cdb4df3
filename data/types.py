"""Plain records that cross from data/ to train/ and model/.

Shape letters: T tokens of a row, S samples (segments), P patches, G grids (one a picture or clip),
V visual tokens (P / merge_size squared), D floats of a patch (1176).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
MediaKind = Literal["image", "video"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaSize:
    """What the planner must know of one picture or clip; a picture has frames 1 and fps 0."""

    kind: MediaKind
    height: int
    width: int
    frames: int = 1
    fps: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSample:
    """One sample as integers: all that the model needs except pixels.

    `targets[i]` is the id that position i must predict (the next token) or IGNORE; the last is always IGNORE.
    `grids` are (time, height, width) in patches before merging; `visual_index` are the places that visual tokens
    fill, in patch order; `media` are the member numbers of the grids; `positions` start at 0.
    """

    tokens: Int64  # (T,)
    targets: Int64  # (T,)
    positions: Int64  # (3, T)
    grids: Int64  # (G, 3)
    visual_index: Int64  # (V,)
    media: tuple[int, ...]  # (G,)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedRow:
    """Samples laid end to end, without padding. Targets and positions never reach over a sample's end."""

    tokens: Int64  # (T,)
    targets: Int64  # (T,) next-token id where supervised, else IGNORE
    positions: Int64  # (3, T) M-RoPE ids, from 0 in each sample
    segment_lengths: Int64  # (S,) sum = T
    grids: Int64  # (G, 3) (t, h, w) in patches before merging; sum(t * h * w) = P
    visual_index: Int64  # (V,) places in the row that visual tokens fill, in patch order
    patches: Float32  # (P, D) normalised, in merge-block order, media in order of appearance
    sample_ids: Int64  # (S,) plan.sample_id(source_id, index)
    source_ids: Int64  # (S,) position of the source in DataConfig.sources
    num_bad: int = 0  # samples that could not be decoded and hold a place only


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """One sample as stored: its JSON and its media members, by number."""

    key: str
    content: dict[str, Any]
    media: dict[int, tuple[str, bytes]]
    """number -> (extension in lower case, bytes)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A picture or clip after resizing; height and width in pixels, time in pairs of frames."""

    time: int
    height: int
    width: int
    patch_size: int
    merge_size: int

    @property
    def patches(self) -> tuple[int, int, int]:
        """(time, height, width) in patches before merging."""
        return self.time, self.height // self.patch_size, self.width // self.patch_size

    @property
    def merged(self) -> tuple[int, int, int]:
        """(time, height, width) in visual tokens."""
        time, height, width = self.patches
        return time, height // self.merge_size, width // self.merge_size

    @property
    def num_patches(self) -> int:
        """Inputs of the vision tower."""
        time, height, width = self.patches
        return time * height * width

    @property
    def num_tokens(self) -> int:
        """Places in the language model's row."""
        return self.num_patches // self.merge_size**2


class SampleIndex(Protocol):
    """What a plan knows of a source: samples in tar shards (index/file.py) or token files (index/mmap_text.py)."""

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """`num_text_tokens`, `num_targets`, `media_end` and the `media_` columns of data/index/file.py."""
        ...

    @property
    def digest(self) -> str:
        """Of all that decides which samples there are and how long."""
        ...

    def __len__(self) -> int: ...

    def media_size(self, row: int) -> MediaSize:
        """One row of the media_ columns."""
        ...

    def media_sizes(self, i: int) -> list[MediaSize]:
        """One for each visual part of sample i, in order of appearance."""
        ...

    def where(self, i: int) -> str:
        """Where sample i lies, for messages."""
        ...
