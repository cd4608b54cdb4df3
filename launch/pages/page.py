"""`triptych inspect --html`: samples as a run is fed them, on one page with nothing outside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import jinja2
import numpy as np

from data.config import IGNORE, DataConfig, ImageConfig, VideoConfig
from data.encoding.encode import encode_sample
from data.encoding.grounding import Grounded, find_boxes
from data.encoding.render import Special, Text, render_sample
from data.encoding.tokenizer import SPECIAL_NAMES, Tokenizer, load_tokenizer
from data.errors import FormatError, SampleError, ShardFault
from data.index.file import Index
from data.index.mmap_text import TextIndex
from data.loading.rows import SourceIndex
from data.types import EncodedSample, MediaSize, RawSample
from launch.pages.look import source_lines, visible
from launch.pages.paint import Painter


@dataclass(kw_only=True, slots=True)
class Figure:
    """A picture or clip in its place; without `urls`, `note` says why."""

    member: int
    what: str = ""
    urls: list[str] = field(default_factory=list)
    note: str = ""
    boxes: list[Grounded] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Text that is learnt or not. `control`: it is control tokens, and not characters that spell them."""

    text: str
    learnt: bool = False
    control: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One sample on the page; with a `fault` it has no content."""

    title: str
    facts: list[str]
    content: Sequence[Span | Figure] = ()
    fault: str = ""


def write_page(out: Path, name: str, index: SourceIndex, data: DataConfig | None, samples: int) -> None:
    """Write the page of `samples` samples, taken evenly from the source `name`, or of all if there are fewer.

    Args:
        data: what a run is fed: its tokenizer and sizes. None shows characters instead of tokens, and the sizes of the
            published configuration.

    Raises MismatchError for a source that was indexed with another tokenizer; ValueError for no samples.
    """
    if isinstance(index, TextIndex):
        raise ValueError(f"{name} holds tokens and no pictures; --sample N --config-name RECIPE shows their text")
    if samples < 1:
        raise ValueError(f"a page of {samples} samples shows nothing; ask for at least 1")
    tokenizer = None
    if data is not None:
        tokenizer = load_tokenizer(data.tokenizer)
        index.check(tokenizer)
    painter = Painter(data.image if data else ImageConfig(), data.video if data else VideoConfig())
    numbers = np.linspace(0, len(index) - 1, min(samples, len(index))).round().astype(int).tolist()
    try:
        entries = [_entry(index, number, data, tokenizer, painter) for number in numbers]
    finally:
        painter.close()
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent))
    environment.filters["visible"] = visible
    page = environment.get_template("inspect.html.jinja").render(
        name=name, lines=list(source_lines(name, index)), entries=entries, tokens=tokenizer is not None
    )
    out.write_text(page, encoding="utf-8")


def _entry(index: Index, number: int, data: DataConfig | None, tokenizer: Tokenizer | None, painter: Painter) -> Entry:
    try:
        raw, sizes = index.read_raw(number), index.media_sizes(number)
    except ShardFault as error:
        return Entry(title=f"{number}", facts=[index.where(number)], fault=str(error))
    title = f"{number}: {raw.key}"
    facts = [f"source {raw.content.get('source', '(none)')}", index.where(number)]
    try:
        visual = sum(painter.grid(size).num_tokens for size in sizes)
        length = int(index.columns["num_text_tokens"][number]) + visual
        facts.append(f"{length} tokens, {visual} of them visual")
        if data is None or tokenizer is None:
            content = list(_characters(raw))
        else:
            encoded = encode_sample(raw.content, sizes, tokenizer, data.image, data.video)
            facts.append(f"{int((encoded.targets != IGNORE).sum())} learnt")
            content = list(_tokens(encoded, tokenizer))
    except (FormatError, SampleError) as error:
        return Entry(title=title, facts=facts, fault=str(error))
    _paint(content, raw, sizes, painter)
    _put_boxes(content)
    return Entry(title=title, facts=facts, content=content)


def _characters(raw: RawSample) -> Iterator[Span | Figure]:
    """Without a tokenizer: what is written, and what of it is learnt."""
    for run in render_sample(raw.content):
        if isinstance(run, Text):
            yield from (Span(text=text, learnt=learnt) for text, learnt in run.pieces)
        elif isinstance(run, Special):
            yield Span(text=SPECIAL_NAMES[run.name], learnt=run.learnt, control=True)
        else:
            yield Figure(member=run.member)


def _tokens(encoded: EncodedSample, tokenizer: Tokenizer) -> Iterator[Span | Figure]:
    """The row as it is: runs of tokens that are alike, and a figure for each run of visual tokens."""
    pads = (tokenizer.ids.image_pad, tokenizer.ids.video_pad)
    control = {getattr(tokenizer.ids, name) for name in SPECIAL_NAMES}
    learnt = [False, *(encoded.targets[:-1] != IGNORE).tolist()]
    sorts = [(own, token in control, token in pads) for own, token in zip(learnt, encoded.tokens.tolist(), strict=True)]
    members = iter(encoded.media)
    place = 0
    for (own, is_control, is_visual), run in groupby(sorts):
        end = place + len(list(run))
        if is_visual:
            yield Figure(member=next(members))
        else:
            text = tokenizer.decode(encoded.tokens[place:end].tolist())
            yield Span(text=text, learnt=own, control=is_control)
        place = end


def _paint(content: Sequence[Span | Figure], raw: RawSample, sizes: Sequence[MediaSize], painter: Painter) -> None:
    figures = [one for one in content if isinstance(one, Figure)]
    for figure, size in zip(figures, sizes, strict=True):
        grid = painter.grid(size)
        frames = f", {painter.frames(size)} frames" if size.kind == "video" else ""
        stored = f"stored {size.width}x{size.height}"
        figure.what = (
            f"{size.kind} {figure.member}: {grid.width}x{grid.height}{frames}, {grid.num_tokens} tokens, {stored}"
        )
        try:
            figure.urls = painter.urls(raw, figure.member, size)
        except SampleError as error:
            figure.note = str(error)


def _put_boxes(content: Sequence[Span | Figure]) -> None:
    """Each box belongs to the figure shown last before it; before any figure, to the first."""
    figures = [one for one in content if isinstance(one, Figure)]
    if not figures:
        return
    current, text = figures[0], ""
    for one in [*content, figures[0]]:
        if isinstance(one, Span):
            text += one.text
            continue
        current.boxes += find_boxes(text)
        current, text = one, ""
