"""How long each sample of a source is, from its index alone. What no row takes is shrunk if the recipe says so."""

from dataclasses import dataclass, replace

import numpy as np

from data.config import LEAST_TOKENS, DataConfig, ImageConfig, VideoConfig
from data.encoding.encode import media_grid
from data.errors import BudgetError, SampleError
from data.index.file import KINDS
from data.plan.jit import compiled
from data.types import Int64, MediaSize, SampleIndex
from data.visual.images import MAX_ASPECT, fitted_sides


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLengths:
    """Of every sample of a source."""

    tokens: Int64
    """(N,), visual tokens included"""
    patches: Int64
    """(N,)"""
    caps: dict[int, int]
    """Sample number -> visual tokens that each of its pictures and clips may have, where it had to be shrunk."""


def source_lengths(config: DataConfig, source_id: int, index: SampleIndex) -> SourceLengths:
    """Lengths within the row's budgets. Raises BudgetError that says which samples are too long for `data.too_long`."""
    name = config.sources[source_id].name
    tokens, patches = sample_lengths(index, config.image, config.video)
    caps: dict[int, int] = {}
    hopeless = too_long = np.flatnonzero((tokens > config.tokens_per_row) | (patches > config.patches_per_row))
    if config.too_long == "shrink":
        for number in too_long.tolist():
            found = _fitting_cap(config, index.media_sizes(number), int(index.columns["num_text_tokens"][number]))
            if found is not None:
                caps[number], tokens[number], patches[number] = found
        hopeless = np.array([number for number in too_long.tolist() if number not in caps], dtype=np.int64)
    if hopeless.size:
        raise BudgetError(_too_long(config, name, index, hopeless, tokens, patches))
    return SourceLengths(tokens=tokens, patches=patches, caps=caps)


def sample_lengths(index: SampleIndex, image: ImageConfig, video: VideoConfig) -> tuple[Int64, Int64]:
    """(tokens, patches) of every sample of an index, by the pure size functions. Raises BudgetError."""
    names = ("num_text_tokens", "media_end", "media_kind", "media_height", "media_width")
    text, ends, kind, height, width = (np.asarray(index.columns[name]) for name in names)
    tokens, patches = np.empty(len(ends), dtype=np.int64), np.empty(len(ends), dtype=np.int64)
    is_picture = kind == KINDS.index("image")
    try:
        clips = _clip_patches(index, np.flatnonzero(~is_picture), image, video)
        rules = (MAX_ASPECT, image.factor, image.min_pixels, image.max_pixels, image.patch_size**2, image.merge_size**2)
        odd = _add_up(text, ends, is_picture, height, width, clips, *rules, tokens, patches)
        if odd >= 0:
            _patches_of(index, odd, image, video)  # raises: it is the same rule
            raise AssertionError(index.media_size(odd))
    except _NoRule as fault:
        number = int(np.searchsorted(ends, fault.row, side="right"))
        raise BudgetError(f"sample {number} at {index.where(number)}: {fault}") from None
    return tokens, patches


_fitted_sides = compiled(fitted_sides)  # the loader's own rule


@compiled
def _add_up(  # type: ignore[no-untyped-def]
    text,
    ends,
    is_picture,
    height,
    width,
    clips,
    aspect,
    factor,
    min_pixels,
    max_pixels,
    pixels,
    merged,
    tokens,
    patches,
) -> int:
    """Fill `tokens` and `patches`. One pass with nothing in between: whole columns of 10 million numbers, each written
    and read again, took five times as long. Returns the first row of a picture that no rule covers, or -1.

    Args:
        clips: patches of each clip, in order.
        aspect: the most that a side may be of the other.
        pixels, merged: of a patch, and patches of a token.
    """
    row = clip = 0
    for sample in range(len(ends)):
        total = 0
        while row < ends[sample]:
            if not is_picture[row]:
                total += clips[clip]
                clip += 1
            else:
                shorter, longer = min(height[row], width[row]), max(height[row], width[row])
                if shorter < 1 or longer > aspect * shorter:
                    return row
                rows, columns = _fitted_sides(int(height[row]), int(width[row]), factor, min_pixels, max_pixels)
                total += rows * columns // pixels
            row += 1
        patches[sample] = total
        tokens[sample] = text[sample] + total // merged
    return -1


class _NoRule(Exception):
    """A size that no rule covers, with its row of the media columns."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def _clip_patches(index: SampleIndex, rows: Int64, image: ImageConfig, video: VideoConfig) -> Int64:
    names = ("height", "width", "frames", "fps")
    columns = np.stack([np.asarray(index.columns[f"media_{name}"])[rows].astype(np.float64) for name in names])
    # Few distinct sizes stand for many clips.
    _, first, which = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    distinct = np.array([_patches_of(index, row, image, video) for row in rows[first].tolist()], dtype=np.int64)
    return distinct[which.reshape(-1)]


def _patches_of(index: SampleIndex, row: int, image: ImageConfig, video: VideoConfig) -> int:
    try:
        return media_grid(index.media_size(row), image, video).num_patches
    except SampleError as error:
        raise _NoRule(row, str(error)) from None


def capped(image: ImageConfig, video: VideoConfig, cap: int | None) -> tuple[ImageConfig, VideoConfig]:
    """The size rules for a sample whose pictures and clips may have `cap` visual tokens each, at least 4."""
    if cap is None:
        return image, video
    pixels = cap * image.factor**2
    return (
        replace(image, min_pixels=min(image.min_pixels, pixels), max_pixels=min(image.max_pixels, pixels)),
        replace(video, max_tokens=min(video.max_tokens, cap)),
    )


def _fitting_cap(config: DataConfig, sizes: list[MediaSize], text: int) -> tuple[int, int, int] | None:
    """The largest cap with which a sample fits a row, with its (tokens, patches) then; None if none does."""

    def lengths(cap: int) -> tuple[int, int]:
        patches = sum(media_grid(size, *capped(config.image, config.video, cap)).num_patches for size in sizes)
        return text + patches // config.image.merge_size**2, patches

    def fits(cap: int) -> bool:
        tokens, patches = lengths(cap)
        return tokens <= config.tokens_per_row and patches <= config.patches_per_row

    low, high = LEAST_TOKENS, config.tokens_per_row
    if not sizes or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low, *lengths(low)


def _too_long(config: DataConfig, name: str, index: SampleIndex, found: Int64, tokens: Int64, patches: Int64) -> str:
    worst = int(found[0])
    needs = {"tokens_per_row": int(tokens[found].max()), "patches_per_row": int(patches[found].max())}
    cures = [f"raise data.{key} to {need}" for key, need in needs.items() if need > getattr(config, key)]
    if config.too_long == "refuse":
        cures.append("let data.too_long=shrink make pictures and clips smaller, or lower max_pixels")
    return (
        f"source {name!r}: {len(found)} of {len(index)} samples do not fit a row"
        f"{', however small their pictures' if config.too_long == 'shrink' else ''}; the first is sample {worst} at "
        f"{index.where(worst)} with {tokens[worst]} tokens and {patches[worst]} patches (a row takes "
        f"{config.tokens_per_row} and {config.patches_per_row}); {'; or '.join(cures)}"
    )
