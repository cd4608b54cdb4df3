"""Words in capitals, rendered in matplotlib's fonts. Held out by string and by font size.

Capitals are chosen so that the tokenizer, trained on text without words in capitals, spells them letter by letter.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.samples.splits import Split, is_heldout

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
    "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol", "cmss10", "cmtt10", "cmb10",
)  # fmt: skip
SIZES = {"train": (18, 20, 22, 24), "heldout": (19, 21, 23)}  # pixels an em
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPLIT_SEED = 26
NUM_HELDOUT = 110

# A list of literals would take six times the lines.
WORDS = """
able acid also arch area army atom aunt axis baby back ball band bank barn base bath beak beam bean bear beat bell
belt bend best bike bird blue boat body bolt bond bone book boot born bowl bulb bull burn bush cake calf call calm
camp cane card care cart cash cave cell chin chip city clay clip club coal coat code coil cold comb cook cool copy
cord cork corn cost crab crew crop crow cube curl dark dash data dawn deck deep deer desk dice dish dock door dove
down drum duck dust duty each earn east easy echo edge exit face fact fair fall farm fast fern file film find fire
fish flag flat foam fold folk food foot fork form fort four free frog fuel full gain game gate gear gift girl give
glad glow goat gold golf good gray grid grip grow gulf half hall hand harp hawk heat herb herd high hill hint hive
hold home hood hook hope horn hour huge hump idea inch iron item jade jazz join joke jump junk jury just keep kelp
kind king kite knee knot lace lake lamb lamp land lane lark last lawn leaf left lens lift lime line lion list loaf
loft long loop luck lung main mall malt many maple mark mask meal melt menu mild milk mill mind mint mist moth move
much mule nail name navy near neck need nest news next nine noon north note oak oath obey olive onyx open oval oven
over pace pack page pain palm park path peak pear pier pile pine pipe plan plum poem poet pole pond pony pool port
post pump quay quiz race rail rain ramp rank read reef rest rice ring rise road rock roof room root rope rose ruby
rule safe sail salt sand seal seat seed ship shoe shop side silk sing site size skin sled slow snow soap sofa soil
song soup spin star stem step stop suit swan tail tale tall tank tape team tent test tide tile time toad tone tool
town trap tray tree trip tube tuna turn twin unit vase vest view vine volt vote walk wall warm wasp wave west what
wheat wide wild wind wing wire wolf wood wool word work yard yarn year yoga zero zinc zone zoom
""".split()  # noqa: SIM905


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """One rendered string. pixels: uint8 (height, width, 3)."""

    string: str
    font: str
    size: int
    pixels: np.ndarray


@cache
def words(split: Split) -> tuple[str, ...]:
    """The words of the split, in capitals."""
    every = sorted({word.upper() for word in WORDS})
    order = np.random.default_rng(SPLIT_SEED).permutation(len(every))
    part = order[:NUM_HELDOUT] if is_heldout(split) else order[NUM_HELDOUT:]
    return tuple(every[int(i)] for i in part)


def choose_string(rng: np.random.Generator, split: Split) -> str:
    """A word of the split; in training half of the strings are random letters, which no model can guess."""
    if is_heldout(split) or rng.random() < 0.5:
        return words(split)[int(rng.integers(len(words(split))))]
    while True:
        string = "".join(LETTERS[int(i)] for i in rng.integers(len(LETTERS), size=int(rng.integers(3, 5))))
        if string not in words("heldout"):
            return string


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = files("matplotlib").joinpath(f"mpl-data/fonts/ttf/{name}.ttf")
    return ImageFont.truetype(io.BytesIO(path.read_bytes()), size)


def render(rng: np.random.Generator, split: Split, string: str, cell: int) -> Rendered:
    """`string` in wide-spaced dark ink on light paper, `cell` pixels high and for each letter."""
    name = FONTS[int(rng.integers(len(FONTS)))]
    size = SIZES[split][int(rng.integers(len(SIZES[split])))]
    font = _font(name, size)
    width = cell * len(string)
    paper = tuple(int(v) for v in rng.integers(215, 256, size=3))
    ink = tuple(int(v) for v in rng.integers(0, 70, size=3))
    image = Image.new("RGB", (width, cell), paper)
    moved = rng.uniform(-1.5, 1.5, size=2)
    for place, letter in enumerate(string):
        middle = (cell * (place + 0.5) + moved[0], cell / 2 + moved[1])
        ImageDraw.Draw(image).text(middle, letter, font=font, fill=ink, anchor="mm")
    return Rendered(string=string, font=name, size=size, pixels=np.asarray(image))
