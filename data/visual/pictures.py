"""Picture files to the colours a person would see: turned as EXIF says, on white, 8 bits a colour, the first frame.

Pillow reads the files. What it leaves to its caller, or shows otherwise than picture viewers do, is done here.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from data.errors import SampleError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_DECODED_PIXELS = 178_956_970  # a compressed bomb must not take the host's memory; Pillow refuses more as well
# A progressive JPEG passes over all its pixels once a scan, and a scan may take 14 bytes: without a limit 1 MB of file
# takes hours to decode. Usual are ten scans; this much takes some ten seconds.
MAX_SCANNED_PIXELS = 4_000_000_000
MIN_SCAN_BYTES = 10  # a scan's marker and header of one component
# Modes that say which colours their numbers are. 32-bit integers and floats (I, F) do not, LAB is not converted.
_SHOWN = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_WIDE = {"I;16", "I;16L", "I;16B"}
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_EXIF_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels as shown, from a picture's header, without decoding it; raises SampleError."""
    with _open(data) as picture:
        turned = _orientation(picture, data) >= 5
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def decode_image(data: bytes) -> Image.Image:
    """RGB picture, of the size that `image_size` gives. Raises SampleError for whatever is wrong with the bytes.

    16-bit greys are scaled to 8 bits, where Pillow (and so transformers) would saturate them; 16-bit colours keep their
    upper 8 bits. Colour profiles are not applied. CMYK in JPEG is taken as inverted with or without Adobe's marker, as
    Pillow has it.
    """
    with _open(data) as picture:
        turn = _TURNS.get(_orientation(picture, data))
        # The first frame of a GIF may cover only a part; what it does not cover is see-through.
        covered = picture.tile[0][1] if picture.format == "GIF" and picture.tile else None
        try:
            picture.load()
            shown = _to_rgb(picture, data)
            if covered is not None:
                whole = Image.new("RGB", shown.size, "white")
                whole.paste(shown.crop(covered), covered)
                shown = whole
            return shown if turn is None else shown.transpose(turn)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on hostile bytes
            raise SampleError(f"picture cannot be decoded: {error}") from error


@contextlib.contextmanager
def _open(data: bytes) -> Iterator[Any]:
    """The header, read; which attributes beside those of every picture it has depends on the format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage that does not raise does not matter; sizes have our own limit
        with _header(data) as picture:
            yield picture


def _header(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SampleError(f"picture above {MAX_DECODED_PIXELS} pixels: {error}") from error
    except Exception as error:
        reason = str(error).partition(" <_io.")[0]  # Pillow names the stream by its address, which no two runs share
        raise SampleError(f"not a picture of the formats {', '.join(FORMATS)}: {reason}") from error
    if picture.width * picture.height > MAX_DECODED_PIXELS:
        raise SampleError(f"picture of {picture.height}x{picture.width} pixels is above {MAX_DECODED_PIXELS} pixels")
    # Bounded first, then counted quickly: what looks like a scan may lie in a thumbnail, or behind the end, as in
    # motion photos.
    scans = len(data) // MIN_SCAN_BYTES if data.startswith(b"\xff\xd8") else 1  # libtiff limits those in TIFF itself
    if scans * picture.width * picture.height > MAX_SCANNED_PIXELS:
        scans = data.count(b"\xff\xda")
    if scans * picture.width * picture.height > MAX_SCANNED_PIXELS:
        scans = _jpeg_scans(data)
    if scans * picture.width * picture.height > MAX_SCANNED_PIXELS:
        raise SampleError(
            f"JPEG of {picture.height}x{picture.width} pixels in {scans} scans: above {MAX_SCANNED_PIXELS} pixels"
        )
    if picture.mode not in _SHOWN | _WIDE and (picture.mode, picture.format) != ("I", "PNG"):
        raise SampleError(
            f"{picture.format} picture with pixels of mode {picture.mode}: no way to show them is agreed; store it "
            f"with 8 or 16 bits a colour, as grey, RGB or CMYK"
        )
    if picture.format == "TIFF":
        picture.info.pop("xmp", None)  # an orientation there would turn the pixels but not the size in the header
    return picture


def _jpeg_scans(data: bytes) -> int:
    """Scans of a JPEG, found from marker to marker up to its end."""
    scans, place = 0, 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF:  # filling
            place += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # a stuffed byte of a scan, or a marker without a length
            place += 2
        else:
            scans += marker == 0xDA
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return scans


def _orientation(picture: Any, data: bytes) -> int:
    """EXIF's number, 1 to 8; 1 (as stored) where EXIF is missing or damaged, as viewers do.

    Not `ImageOps.exif_transpose`, which decodes the picture and writes EXIF anew, so that damaged EXIF can raise.
    """
    if picture.format == "TIFF":
        return 1  # Pillow turns these itself, the size in the header included
    if picture.format == "PNG" and "exif" not in picture.info and (chunk := _png_exif(data)):
        picture.info["exif"] = b"Exif\0\0" + chunk
    try:
        found = Image.Image.getexif(picture).get(_EXIF_ORIENTATION)  # PNG's own getexif would decode
    except Exception:  # EXIF's reader raises SyntaxError, struct.error, ... on hostile bytes
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _png_exif(data: bytes) -> bytes | None:
    """The eXIf chunk, which may follow the pixels; Pillow finds it there only after decoding them."""
    place = 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"eXIf":
            return data[place + 8 : place + 8 + length]
        place += 12 + length
    return None


def _to_rgb(picture: Any, data: bytes) -> Image.Image:
    if picture.mode in _WIDE or picture.mode == "I":
        return _from_wide(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")  # the only way from there
    clear = picture.info.get("transparency")
    if clear is not None and picture.format == "PNG" and picture.mode in ("L", "RGB"):
        depth = data[24]
        # Pillow gives the colour at the file's depth, the pixels at 8 bits.
        if picture.mode == "L":
            picture.info["transparency"] = clear * 255 // ((1 << depth) - 1)
        elif depth == 16:
            picture.info["transparency"] = tuple(part >> 8 for part in clear)
    if "A" in picture.getbands() or "a" in picture.getbands() or clear is not None:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return picture.convert("RGB")


def _from_wide(picture: Any) -> Image.Image:
    """Grey of 12 or 16 bits."""
    wide = np.asarray(picture).astype(np.uint32)
    full, white_is_zero = 65535, False
    if picture.format == "TIFF":
        full = (1 << picture.tag_v2.get(_TIFF_BITS, (16,))[0]) - 1
        white_is_zero = picture.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
    grey = ((wide * 255 + full // 2) // full).clip(0, 255).astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[wide == clear] = 255
    return Image.fromarray(grey).convert("RGB")
