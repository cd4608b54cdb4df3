"""A source with its page, and what a page of it must show, known without the code that makes pages."""

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.config import ImageConfig
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.types import RawSample
from launch.pages.page import write_page
from tests.data.conftest import picture_bytes
from tests.harness.html_page import Corners, Page, hostile_sample
from train.resolve import compose

IMAGE = ImageConfig(min_pixels=28 * 28, max_pixels=56 * 84)
HEIGHT, WIDTH = 100, 150  # stored; 56x84 in the row


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source's page."""

    page: Path
    learnt: str
    """All that is learnt of it, with control tokens written out."""
    boxes: list[Corners]
    pictures: list[np.ndarray]

    def other_pictures(self, page: Page) -> int:
        """Pictures on the page that are not those of the row, pixel for pixel."""
        found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in page.pictures]
        pairs = zip(found, self.pictures, strict=False)
        return abs(len(found) - len(self.pictures)) + sum(not np.array_equal(one, other) for one, other in pairs)

    def other_boxes(self, page: Page) -> int:
        """Boxes that are not drawn where they belong, in percent."""
        pairs = zip(page.boxes, self.boxes, strict=False)
        return abs(len(page.boxes) - len(self.boxes)) + sum(one != other for one, other in pairs)


def plain_source(folder: Path, tokenizer: Path, *, hostile: bool) -> Source:
    """Three samples with a box in pixels each, or one whose fields are all hostile; indexed, and with its page."""
    box = {"type": "box", "box": [15, 20, 75, 60], "scale": [WIDTH, HEIGHT]}
    asked = {"role": "user", "content": [{"type": "image", "media": 0}, {"type": "text", "text": "Where?"}]}
    samples = [
        RawSample(
            key=f"s{number}",
            content={"messages": [asked, {"role": "assistant", "content": [{"type": "text", "text": "At "}, box]}]},
            media={0: ("png", picture_bytes(HEIGHT, WIDTH, number))},
        )
        for number in range(3)
    ]
    write_shards(folder, "source", [hostile_sample(picture_bytes(56, 56))] if hostile else samples, 10)
    index = build_index(folder, load_tokenizer(tokenizer))
    data = replace(compose("quickstart_stage3").data, tokenizer=str(tokenizer), image=IMAGE)
    write_page(folder / "page.html", str(folder), index, data, samples=3)
    originals = [Image.open(io.BytesIO(sample.media[0][1])) for sample in samples]
    return Source(
        page=folder / "page.html",
        learnt="At <|box_start|>(100,200),(500,600)<|box_end|><|im_end|>\n" * 3,
        boxes=[(10.0, 20.0, 40.0, 40.0)] * 3,
        pictures=[np.asarray(one.resize((84, 56), Image.Resampling.BICUBIC)) for one in originals],
    )
