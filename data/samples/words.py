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

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "STIXGeneralBol")
SIZES = {"train": (18, 20, 22, 24), "heldout": (19, 21, 23)}  # pixels an em
LETTERS = "ADEILMNOPRST"  # the commonest: a tiny tower has minutes to learn to read
SPLIT_SEED = 26
NUM_HELDOUT = 110

# A list of literals would take six times the lines.
WORDS = """
add aid aim also and area arm art ate atom data deep deer die door dot ear earn east eat end era idea ion ire iron
item lamp land lane lap last led lens let lid lie lime line lion lip list lit loop lot mad main mall malt man map
mat meal melt men met mid mild mill mind mint mist moat mole molt mop most nail name nap near need nest net nil nine
nit nod noon not note oar oat odd oil old omen one open pad pain pal palm pals pan pear pen per pest pet pie pier
pile pin pine pint pipe pit plan plea plot pod poem poet pole pond pool pore port pose post pot rail rain ram ramp
rap rat rate read red rest rid ride rim riot rip rise road roam rod rode role room root rope rose rot rote sad sail
salt sand sap sea seal seat seed set side silo sip sit site slam slap sled slid slim slip slot snap soap sod soil
sold sole some son soon sore sort spin spot star stem step stop tail tale tall tame tap tape tar tea team tear ten
tent term test tide tie tile time tin tip toad toe toil told ton tone tool top tore torn tram trap tree trim trio
trip trot
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
