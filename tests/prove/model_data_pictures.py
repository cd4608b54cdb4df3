"""Picture files of which it is known, without any decoder, what a person would see.

All show one scene of flat quarters, in colours or in greys. What a format's encoder in Pillow cannot write (16-bit
colours, chunks in odd places, CMYK without a marker) is written here byte by byte.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 80
RED, GREEN, BLUE, DARK, WHITE = (224, 32, 16), (16, 192, 64), (32, 48, 208), (40, 40, 40), (255, 255, 255)
GREYS = (20, 90, 160, 255)
EXACT = 0
LOSSY = 6  # levels that JPEG and WebP may be off in flat quarters that end on their blocks


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A file, and what is to be seen of it."""

    name: str
    data: bytes
    pixels: np.ndarray
    """uint8 (H, W, 3)"""
    tolerance: int = EXACT


def quarters(top_left: Any, top_right: Any, bottom_left: Any, bottom_right: Any) -> np.ndarray:
    """uint8 (H, W, values of a quarter); the left quarters are narrower, so that no turn looks like another."""
    values = np.array([top_left, top_right, bottom_left, bottom_right], dtype=np.uint8).reshape(4, -1)
    scene = np.empty((HEIGHT, WIDTH, values.shape[1]), dtype=np.uint8)
    scene[:16, :32], scene[:16, 32:], scene[16:, :32], scene[16:, 32:] = values
    return scene


def gallery() -> list[Shown]:
    """Every file, each under its own name."""
    return [*_png(), *_jpeg(), *_turned(), *_moving(), *_others()]


SCENE = quarters(RED, GREEN, BLUE, DARK)
SCENE_ON_WHITE = quarters(RED, GREEN, BLUE, WHITE)
GREY = np.repeat(quarters(*GREYS), 3, axis=2)
GREY_ON_WHITE = np.repeat(quarters(*GREYS[:2], 255, GREYS[3]), 3, axis=2)
BITS = np.repeat(quarters(0, 255, 255, 0), 3, axis=2)


def save(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """Pillow's file of uint8 (H, W, C) or a mode's pixels."""
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    picture = Image.fromarray(squeezed)
    stream = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(stream, kind, **options)
    return stream.getvalue()


def png(samples: np.ndarray, depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of (H, W, C) samples at a depth of 2 (packed), 8 or 16 bits, with chunks around the pixels."""
    height, width, _ = samples.shape
    if depth == 2:
        four = samples.reshape(height, width // 4, 4).astype(np.uint8)
        rows = (four[..., 0] << 6 | four[..., 1] << 4 | four[..., 2] << 2 | four[..., 3]).astype(np.uint8)
    else:
        rows = samples.astype(">u2" if depth == 16 else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + after + chunk(b"IEND", b"")


def chunk(name: bytes, payload: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def exif(orientation: int) -> bytes:
    """A TIFF header with one entry, big-endian, as cameras write it."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def stored(shown: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera stores for an orientation: EXIF says where row 0 and column 0 are to be seen."""
    turned = {
        1: shown,  # row 0 at the top, column 0 at the left
        2: shown[:, ::-1],  # top, right
        3: shown[::-1, ::-1],  # bottom, right
        4: shown[::-1],  # bottom, left
        5: shown.swapaxes(0, 1),  # row 0 at the left, column 0 at the top
        6: shown[:, ::-1].swapaxes(0, 1),  # right, top
        7: shown[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: shown[::-1].swapaxes(0, 1),  # left, bottom
    }
    return np.ascontiguousarray(turned[orientation])


def _png() -> Iterator[Shown]:
    wide, wide_grey = SCENE.astype(np.uint16) * 257, quarters(*GREYS).astype(np.uint16) * 257
    clear = np.full((HEIGHT, WIDTH, 1), 65535)
    clear[16:, 32:] = 0
    two_bits = quarters(0, 1, 2, 3)
    levels = np.repeat(quarters(0, 85, 170, 255), 3, axis=2)
    faint = np.dstack([SCENE, quarters(255, 255, 255, 51)])  # a fifth of 40 over white: 40 * 0.2 + 255 * 0.8
    grey_faint = np.dstack([quarters(*GREYS), quarters(255, 255, 0, 255)])
    palette = Image.fromarray(SCENE).quantize(4)
    with_clear = io.BytesIO()
    palette.save(with_clear, "PNG", transparency=palette.getpixel((WIDTH - 1, HEIGHT - 1)))
    alphas = bytearray([255] * 4)
    alphas[palette.getpixel((WIDTH - 1, HEIGHT - 1))] = 51  # type: ignore[index]
    half_clear = io.BytesIO()
    palette.save(half_clear, "PNG", transparency=bytes(alphas))
    plain = io.BytesIO()
    palette.save(plain, "PNG")
    yield Shown(name="PNG, RGB", data=png(SCENE, 8, 2), pixels=SCENE)
    yield Shown(name="PNG, palette", data=plain.getvalue(), pixels=SCENE)
    yield Shown(name="PNG, palette with a clear colour", data=with_clear.getvalue(), pixels=SCENE_ON_WHITE)
    over = quarters(RED, GREEN, BLUE, (212, 212, 212))
    yield Shown(name="PNG, palette with alphas", data=half_clear.getvalue(), pixels=over, tolerance=1)
    yield Shown(name="PNG, RGBA", data=png(faint, 8, 6), pixels=over, tolerance=1)
    yield Shown(name="PNG, grey and alpha", data=png(grey_faint, 8, 4), pixels=GREY_ON_WHITE)
    yield Shown(name="PNG, 1 bit", data=save(quarters(0, 255, 255, 0), "PNG", "1"), pixels=BITS)
    yield Shown(name="PNG, 2 bits", data=png(two_bits, 2, 0), pixels=levels)
    two_clear = chunk(b"tRNS", struct.pack(">H", 2))
    pixels = np.repeat(quarters(0, 85, 255, 255), 3, axis=2)
    yield Shown(name="PNG, 2 bits with a clear grey", data=png(two_bits, 2, 0, two_clear), pixels=pixels)
    yield Shown(name="PNG, 16-bit grey", data=png(wide_grey, 16, 0), pixels=GREY)
    grey_clear = chunk(b"tRNS", struct.pack(">H", GREYS[2] * 257))
    yield Shown(name="PNG, 16-bit grey with a clear grey", data=png(wide_grey, 16, 0, grey_clear), pixels=GREY_ON_WHITE)
    yield Shown(name="PNG, 16-bit RGB", data=png(wide, 16, 2), pixels=SCENE, tolerance=1)
    colour_clear = chunk(b"tRNS", struct.pack(">HHH", *(part * 257 for part in DARK)))
    yield Shown(name="PNG, 16-bit RGB with a clear colour", data=png(wide, 16, 2, colour_clear), pixels=SCENE_ON_WHITE)
    yield Shown(name="PNG, 16-bit RGBA", data=png(np.dstack([wide, clear]), 16, 6), pixels=SCENE_ON_WHITE, tolerance=1)
    data = png(np.dstack([wide_grey, clear]), 16, 4)
    on_white = np.repeat(quarters(*GREYS[:3], 255), 3, axis=2)
    yield Shown(name="PNG, 16-bit grey and alpha", data=data, pixels=on_white, tolerance=1)


def _jpeg() -> Iterator[Shown]:
    fine: dict[str, Any] = {"quality": 100, "subsampling": 0}
    inks = quarters((0, 255, 255, 0), (255, 0, 255, 64), (0, 0, 0, 128), (0, 0, 0, 255))
    # 255 less the ink, times what black lets through: white less cyan is red and so on.
    seen = quarters((255, 0, 0), (0, 191, 0), (127, 127, 127), (0, 0, 0))
    cmyk = Image.fromarray(inks, "CMYK")
    stream = io.BytesIO()
    cmyk.save(stream, "JPEG", quality=100)
    marked = stream.getvalue()
    place = marked.index(b"\xff\xee\0\x0eAdobe")
    unmarked = marked[:place] + marked[place + 16 :]
    yield Shown(name="JPEG", data=save(SCENE, "JPEG", **fine), pixels=SCENE, tolerance=LOSSY)
    yield Shown(name="JPEG, grey", data=save(quarters(*GREYS), "JPEG", quality=100), pixels=GREY, tolerance=LOSSY)
    yield Shown(name="JPEG, CMYK as Adobe writes it", data=marked, pixels=seen, tolerance=LOSSY)
    yield Shown(name="JPEG, CMYK without a marker", data=unmarked, pixels=seen, tolerance=LOSSY)
    yield Shown(name="JPEG, YCCK", data=_ycck(inks, place), pixels=seen, tolerance=LOSSY)


def _ycck(inks: np.ndarray, place: int) -> bytes:
    """Adobe's other CMYK. The stored colours are inverted (255 - ink), and YCCK inverts them once more before it makes
    YCbCr of them, so the inks themselves stand as red, green and blue; black, beside them, is inverted once.
    """
    red, green, blue = (inks[..., colour].astype(float) for colour in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = [luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128, 255.0 - inks[..., 3]]
    stream = io.BytesIO()
    pixels = np.stack(planes, axis=2).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(255 - pixels, "CMYK").save(stream, "JPEG", quality=100)  # stored as 255 less what it is given
    data = bytearray(stream.getvalue())
    assert data[place + 15] == 0, "the last byte of Adobe's marker is the transform"
    data[place + 15] = 2
    return bytes(data)


def _turned() -> Iterator[Shown]:
    for number in range(1, 9):
        pixels, tag = stored(SCENE, number), b"Exif\0\0" + exif(number)
        jpeg = save(pixels, "JPEG", quality=100, subsampling=0, exif=tag)
        yield Shown(name=f"JPEG, EXIF orientation {number}", data=jpeg, pixels=SCENE, tolerance=LOSSY)
    pixels, tag = stored(SCENE, 6), exif(6)
    yield Shown(name="PNG, EXIF before the pixels", data=png(pixels, 8, 2, before=chunk(b"eXIf", tag)), pixels=SCENE)
    yield Shown(name="PNG, EXIF after the pixels", data=png(pixels, 8, 2, after=chunk(b"eXIf", tag)), pixels=SCENE)
    webp = save(pixels, "WEBP", lossless=True, exif=b"Exif\0\0" + tag)
    yield Shown(name="WebP, EXIF", data=webp, pixels=SCENE)
    for number in (3, 6):
        tiff = save(stored(SCENE, number), "TIFF", tiffinfo={274: number})
        yield Shown(name=f"TIFF, orientation {number}", data=tiff, pixels=SCENE)
    grey = png(stored(quarters(*GREYS).astype(np.uint16) * 257, 8), 16, 0, before=chunk(b"eXIf", exif(8)))
    yield Shown(name="PNG, 16-bit grey, EXIF", data=grey, pixels=GREY)


def _moving() -> Iterator[Shown]:
    second = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8))]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})):
        data = save(SCENE, kind, save_all=True, append_images=second, duration=100, **options)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
        yield Shown(name=f"{kind}, moving", data=data, pixels=SCENE)
    yield Shown(name="GIF", data=save(SCENE, "GIF"), pixels=SCENE)
    palette = Image.fromarray(SCENE).quantize(4)
    stream = io.BytesIO()
    palette.save(stream, "GIF", transparency=palette.getpixel((WIDTH - 1, HEIGHT - 1)))
    yield Shown(name="GIF with a clear colour", data=stream.getvalue(), pixels=SCENE_ON_WHITE)
    # A screen larger than its only frame: bytes 6 to 9 of a GIF are the screen's width and height.
    data = bytearray(save(SCENE, "GIF"))
    data[6:10] = struct.pack("<HH", WIDTH + 10, HEIGHT + 5)
    seen = np.full((HEIGHT + 5, WIDTH + 10, 3), 255, dtype=np.uint8)
    seen[:HEIGHT, :WIDTH] = SCENE
    yield Shown(name="GIF whose frame is smaller than its screen", data=bytes(data), pixels=seen)


def _others() -> Iterator[Shown]:
    inks = quarters((0, 255, 255, 0), (255, 0, 255, 64), (0, 0, 0, 128), (0, 0, 0, 255))
    seen = quarters((255, 0, 0), (0, 191, 0), (127, 127, 127), (0, 0, 0))
    stream = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(stream, "TIFF")
    yield Shown(name="TIFF, CMYK", data=stream.getvalue(), pixels=seen, tolerance=1)
    yield Shown(name="TIFF", data=save(SCENE, "TIFF", compression="tiff_lzw"), pixels=SCENE)
    yield Shown(name="TIFF, 1 bit", data=save(quarters(0, 255, 255, 0), "TIFF", "1"), pixels=BITS)
    grey, colour = quarters(*GREYS).astype(np.uint16) * 257, SCENE.astype(np.uint16) * 257
    for order, word in (("<", "little"), (">", "big")):
        yield Shown(name=f"TIFF, 16-bit grey, {word}-endian", data=tiff(grey, order), pixels=GREY)
        yield Shown(name=f"TIFF, 16-bit RGB, {word}-endian", data=tiff(colour, order), pixels=SCENE, tolerance=1)
    yield Shown(name="TIFF, 16-bit grey, white is zero", data=tiff(65535 - grey, "<", photometric=0), pixels=GREY)
    twelve = quarters(*GREYS).astype(int) * 4095 // 255
    yield Shown(name="TIFF, 12-bit grey", data=tiff(twelve, "<", bits=12), pixels=GREY, tolerance=1)
    clear, faded = quarters(255, 255, 51, 0), quarters(*GREYS)
    faded[16:, :32] //= 5  # alpha is multiplied in: a fifth of 160
    faded[16:, 32:] = 0
    on_white = np.repeat(quarters(*GREYS[:2], 236, 255), 3, axis=2)
    data = tiff(np.dstack([faded, clear]), "<", bits=8, extra=1)
    yield Shown(name="TIFF, grey with alpha multiplied in", data=data, pixels=on_white, tolerance=1)
    yield Shown(name="WebP", data=save(SCENE, "WEBP", lossless=True), pixels=SCENE)
    clear = np.dstack([SCENE, quarters(255, 255, 255, 0)])
    yield Shown(name="WebP with alpha", data=save(clear, "WEBP", lossless=True), pixels=SCENE_ON_WHITE)
    yield Shown(name="BMP", data=save(SCENE, "BMP"), pixels=SCENE)
    yield Shown(name="BMP, 1 bit", data=save(quarters(0, 255, 255, 0), "BMP", "1"), pixels=BITS)


def tiff(
    samples: np.ndarray, order: str, photometric: int | None = None, form: int = 1, bits: int = 16, extra: int = 0
) -> bytes:
    """An uncompressed TIFF of (H, W, C) numbers of `bits` bits; form 1 is whole numbers, 3 floats; extra 1 is alpha."""
    height, width, colours = samples.shape
    kind = photometric if photometric is not None else 2 if colours == 3 else 1
    if bits == 12:  # two numbers in three bytes, the upper bits first
        first, second = samples.reshape(-1, 2).T
        pixels = (
            np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
        )
    else:
        pixels = samples.astype(f"{order}{'f' if form == 3 else 'u'}{bits // 8}").tobytes()
    shorts = {259: [1], 262: [kind], 258: [bits] * colours, 277: [colours], 339: [form] * colours}
    shorts |= {338: [extra]} if extra else {}
    longs = {256: width, 257: height, 273: 0, 278: height, 279: len(pixels)}
    table_end = 8 + 2 + 12 * (len(shorts) + len(longs)) + 4
    beyond = b"".join(struct.pack(f"{order}{colours}H", *shorts[tag]) for tag in (258, 339))
    longs[273] = table_end + len(beyond)
    entries = {tag: struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in longs.items()}
    for tag, values in shorts.items():
        inline = struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
        if len(inline) > 4:
            inline = struct.pack(order + "I", table_end + beyond.index(inline))
        entries[tag] = struct.pack(order + "HHI", tag, 3, len(values)) + inline
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    return head + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4) + beyond + pixels
