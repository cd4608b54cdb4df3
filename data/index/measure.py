"""What the planner must know of pictures and clips, from their bytes."""

from collections.abc import Iterable, Sequence

from data.encoding.render import Run, Visual, render_sample
from data.errors import FormatError, SampleError
from data.index.probe import PictureProbe, Probed
from data.types import MediaSize, RawSample
from data.visual.decode import ClipDecoder
from data.visual.images import MAX_ASPECT
from data.visual.pictures import image_size

PROBE_SECONDS = 60.0


def measure(raw: RawSample, decoder: ClipDecoder) -> list[MediaSize]:
    """The size of each visual part, in order of appearance; headers of pictures are parsed in this process.

    Raises SampleError or FormatError.
    """
    return _sizes(raw, shown_media(raw, render_sample(raw.content)), decoder, {})


def shown_media(raw: RawSample, runs: Iterable[Run]) -> list[tuple[str, int]]:
    """(kind, member number) of each visual part. Raises FormatError if parts and members do not belong together."""
    shown: list[tuple[str, int]] = [(run.kind, run.member) for run in runs if isinstance(run, Visual)]
    for kind, number in shown:
        if number not in raw.media:
            raise FormatError(f"sample {raw.key}: part {kind} wants member {number}, there are {sorted(raw.media)}")
    if unused := raw.media.keys() - {number for _, number in shown}:
        raise FormatError(f"sample {raw.key}: no part shows member {', '.join(map(str, sorted(unused)))}")
    return shown


class Measurer:
    """Measures many samples at once, pictures and clips in child processes. For one thread at a time."""

    def __init__(self, decode_pictures: bool) -> None:
        self._probe = PictureProbe(decode_pictures)
        self._decoder = ClipDecoder(PROBE_SECONDS)

    def measure(
        self, samples: Iterable[tuple[RawSample, Sequence[Run]]]
    ) -> list[list[MediaSize] | SampleError | FormatError]:
        """For each sample, which comes with its rendering, what `measure` gives, or the error that it raises."""
        shown: list[tuple[RawSample, list[tuple[str, int]] | FormatError]] = []
        for raw, runs in samples:
            try:
                shown.append((raw, shown_media(raw, runs)))
            except FormatError as error:
                shown.append((raw, error))
        places = [
            (id(raw), number)
            for raw, parts in shown
            if not isinstance(parts, FormatError)
            for number in dict.fromkeys(number for kind, number in parts if kind == "image")
        ]
        members = {(id(raw), number): media[1] for raw, _ in shown for number, media in raw.media.items()}
        probed = dict(zip(places, self._probe.sizes([members[place] for place in places]), strict=True))
        found: list[list[MediaSize] | SampleError | FormatError] = []
        for raw, parts in shown:
            try:
                if isinstance(parts, FormatError):
                    raise parts
                known = {number: probed[id(raw), number] for kind, number in parts if kind == "image"}
                found.append(_sizes(raw, parts, self._decoder, known))
            except (SampleError, FormatError) as error:
                found.append(error)
        return found

    def close(self) -> None:
        """End the child processes."""
        self._probe.close()
        self._decoder.close()


def _sizes(
    raw: RawSample, shown: Sequence[tuple[str, int]], decoder: ClipDecoder, probed: dict[int, Probed]
) -> list[MediaSize]:
    sizes = []
    for kind, number in shown:
        try:
            sizes.append(_size(kind, raw.media[number][1], decoder, probed.get(number)))
        except SampleError as error:
            raise SampleError(f"sample {raw.key}, member {number}: {error}") from error
    return sizes


def _size(kind: str, data: bytes, decoder: ClipDecoder, probed: Probed | None) -> MediaSize:
    if kind == "image":
        if isinstance(probed, SampleError):
            raise probed
        height, width = probed or image_size(data)
        size = MediaSize(kind="image", height=height, width=width)
    else:
        size = decoder.probe(data)
        if size.frames < 1 or not size.fps > 0:
            raise SampleError(f"clip with {size.frames} frames at {size.fps} frames per second")
    if max(size.height, size.width) > MAX_ASPECT * min(size.height, size.width):
        raise SampleError(f"{kind} of {size.height}x{size.width} pixels: aspect ratio above {MAX_ASPECT}")
    return size
