"""Picture files show what a person would see; damaged ones raise SampleError and nothing else."""

import contextlib
import io
import resource
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data.config import ImageConfig, VideoConfig
from data.errors import BudgetError, MismatchError, SampleError
from data.index.build import open_index
from data.plan.lengths import sample_lengths
from data.types import RawSample
from data.visual.pictures import decode_image, image_size
from tests.data.conftest import picture_bytes
from tests.prove.model_data_pictures import HEIGHT, SCENE, WIDTH, Shown, chunk, exif, gallery, png, save, tiff

GALLERY = gallery()


@pytest.mark.parametrize("shown", GALLERY, ids=lambda shown: shown.name)
def test_a_picture_has_the_colours_a_person_would_see(shown: Shown) -> None:
    found = np.asarray(decode_image(shown.data)).astype(int)
    assert found.shape == shown.pixels.shape
    assert np.abs(found - shown.pixels).max() <= shown.tolerance


def test_the_size_comes_from_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    for shown in GALLERY:
        assert image_size(shown.data) == shown.pixels.shape[:2], shown.name


def test_sixteen_bit_greys_are_scaled_not_saturated() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64, 1)
    for data in (png(ramp, 16, 0), tiff(ramp, ">")):
        grey = np.asarray(decode_image(data))[..., 0].astype(int)
        assert np.abs(grey - np.round(ramp[..., 0] / 257)).max() == 0


def test_sixteen_bit_colours_are_within_a_level() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    colours = np.stack([ramp, ramp[::-1], ramp.T], axis=2)
    for data in (png(colours, 16, 2), tiff(colours, "<"), tiff(colours, ">")):
        assert np.abs(np.asarray(decode_image(data)) - colours / 257).max() < 1


def test_numbers_without_agreed_colours_are_refused_by_their_header() -> None:
    floats = np.linspace(0, 1, 30 * 40, dtype=np.float32).reshape(30, 40, 1)
    stream = io.BytesIO()
    Image.fromarray(SCENE).convert("LAB").save(stream, "TIFF")
    for data, mode in (
        (tiff(floats, "<", form=3, bits=32), "mode F"),
        (tiff(floats * 1e6, "<", bits=32), "mode I"),
        (stream.getvalue(), "mode LAB"),
    ):
        for read in (image_size, decode_image):
            with pytest.raises(SampleError, match=f"TIFF picture with pixels of {mode}.*8 or 16 bits"):
                read(data)


def test_formats_are_those_of_the_list() -> None:
    for kind in ("PPM", "ICO", "TGA", "JPEG2000"):
        with pytest.raises(SampleError, match="not a picture of the formats PNG, JPEG, WEBP, GIF, BMP, TIFF"):
            image_size(save(SCENE, kind))


def test_a_picture_too_large_is_refused_by_its_header() -> None:
    for side in (13_378, 30_000):  # just above the limit, and above Pillow's own
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        with pytest.raises(SampleError, match="above 178956970 pixels"):
            image_size(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b""))


def test_a_jpeg_of_endless_scans_is_refused_by_its_header() -> None:
    """2000x2000 pixels in 1 MB, of one scan 60,000 times over: libjpeg would take minutes."""
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000), (120, 130, 140)).save(stream, "JPEG", progressive=True)
    good = stream.getvalue()
    last, end = good.rindex(b"\xff\xda"), good.rindex(b"\xff\xd9")
    assert end - last < 20
    start = time.monotonic()
    for read in (image_size, decode_image):
        with pytest.raises(SampleError, match="JPEG of 2000x2000 pixels in 60010 scans"):
            read(good[:end] + good[last:end] * 60_000 + good[end:])
    assert time.monotonic() - start < 60
    few = decode_image(good[:end] + good[last:end] * 10 + good[end:])
    assert np.abs(np.asarray(few).astype(int) - (120, 130, 140)).max() <= 2


def test_what_looks_like_scans_behind_a_jpeg_or_in_it_is_none() -> None:
    """Motion photos carry megabytes behind their end, and thumbnails have scans of their own."""
    plain = io.BytesIO()
    Image.new("RGB", (2000, 2000), "red").save(plain, "JPEG")
    thumbnail = b"\xff\xda" * 15_000
    segment = b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    photo = plain.getvalue()[:2] + segment + plain.getvalue()[2:] + b"\xff\xda\x00\x02" * 60_000
    assert image_size(photo) == (2000, 2000)
    assert decode_image(photo).getpixel((5, 5)) == pytest.approx((254, 0, 0), abs=2)


def test_a_compressed_text_of_gigabytes_is_not_unpacked() -> None:
    text = zlib.compress(bytes(300 << 20), 9)
    assert len(text) < 1 << 20
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + chunk(b"zTXt", b"note\0\0" + text)
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(8 * 25))) + chunk(b"IEND", b"")
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.suppress(SampleError):
            assert np.asarray(decode_image(data)).shape == (8, 8, 3)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    finally:
        tracemalloc.stop()


def test_broken_pictures_raise_sample_error() -> None:
    good = picture_bytes(40, 50)
    assert image_size(good) == (40, 50)
    for bad in (b"", b"GIF89a nothing", good[: len(good) // 2], good[:60] + bytes(200) + good[260:]):
        with pytest.raises(SampleError):
            decode_image(bad)


@pytest.mark.parametrize("name", ["JPEG, EXIF orientation 6", "PNG, EXIF after the pixels", "WebP, EXIF"])
def test_damaged_exif_never_hides_a_picture(name: str) -> None:
    """It is shown, turned or as stored, and its size is known. exif_transpose raises on a third of the PNG and WebP."""
    (shown,) = [shown for shown in GALLERY if shown.name == name]
    start = shown.data.index(exif(6))
    random = np.random.default_rng(0)
    sizes = set()
    for _ in range(300):
        data = bytearray(shown.data)
        for place in random.integers(0, len(exif(6)), int(random.integers(1, 6))):
            data[start + place] = random.integers(0, 256)
        if name.startswith("PNG"):  # with a checksum to match
            data[start - 8 : start + len(exif(6)) + 4] = chunk(b"eXIf", bytes(data[start : start + len(exif(6))]))
        size = image_size(bytes(data))
        assert np.asarray(decode_image(bytes(data))).shape == (*size, 3)
        sizes.add(size)
    assert sizes == {(HEIGHT, WIDTH), (WIDTH, HEIGHT)}


@pytest.mark.parametrize("shown", GALLERY, ids=lambda shown: shown.name)
def test_damaged_files_raise_nothing_else(shown: Shown) -> None:
    random = np.random.default_rng(len(shown.name))
    for number in range(60):
        data = bytearray(shown.data)
        if number % 3 == 0:
            del data[int(random.integers(0, len(data))) :]
        for place in random.integers(0, min(len(data), 400) or 1, 4):
            data[place : place + 1] = bytes([random.integers(0, 256)])
        try:
            size = image_size(bytes(data))
            assert np.asarray(decode_image(bytes(data))).shape == (*size, 3)
        except SampleError:
            pass


def test_what_is_left_out_is_named_by_shard_key_and_member(make_source: Callable[..., Path]) -> None:
    shown = {"parts": [{"type": "image", "media": 0}, {"type": "image", "media": 3}]}
    good = ("png", picture_bytes(30, 30))
    flawed = {"long": picture_bytes(2, 401), "float": tiff(np.zeros((9, 9, 1)), "<", form=3, bits=32), "no": b"picture"}
    samples = [RawSample(key=key, content=shown, media={0: good, 3: ("png", bad)}) for key, bad in flawed.items()]
    samples.append(RawSample(key="good", content=shown, media={0: good, 3: good}))
    refused = open_index(make_source(samples=samples)).meta["refused"]
    assert [(entry["key"], entry["shard"]) for entry in refused] == [(key, "mixed-000000.tar") for key in flawed]
    reasons = [entry["reason"] for entry in refused]
    assert reasons[0] == "sample long, member 3: image of 2x401 pixels: aspect ratio above 200"
    assert "sample float, member 3: TIFF picture with pixels of mode F" in reasons[1]
    assert "sample no, member 3: not a picture" in reasons[2]


def test_the_planner_names_a_sample_that_no_rule_covers(
    make_source: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {"parts": [{"type": "image", "media": 0}]}
    samples = [RawSample(key=f"k{n}", content=shown, media={0: ("png", picture_bytes(30, 30 * n))}) for n in (1, 4)]
    index = open_index(make_source(samples=samples))
    for module in ("visual.images", "plan.lengths"):
        monkeypatch.setattr(f"data.{module}.MAX_ASPECT", 3)
    with pytest.raises(BudgetError, match=r"sample 1 at mixed-000000.tar\[\d+:\d+\]: picture of 30x120 pixels"):
        sample_lengths(index, ImageConfig(), VideoConfig())


def test_an_index_that_measured_pictures_otherwise_is_refused(make_source: Callable[..., Path]) -> None:
    folder = make_source(clips=False)
    place = folder / "index" / "index.json"
    place.write_text(place.read_text().replace('"version": 3', '"version": 2'))
    with pytest.raises(MismatchError, match=r"has version 2, this code reads 3; build it again with `triptych index"):
        open_index(folder)
