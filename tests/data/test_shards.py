"""Hostile, damaged and ordinary tars; the index over them."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError, MismatchError, ShardFault
from data.formats.shards import BLOCK, parse_sample, scan_shard, write_shards
from data.index.build import build_index, open_index
from data.store.store import LocalStore, StoredObject, open_store
from data.types import RawSample
from tests.data.conftest import make_samples, picture_bytes, train_tokenizer

TEXT = b'{"parts": [{"type": "text", "text": "x"}]}'


def tar_bytes(members: dict[str, bytes], **options: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5  # a float: Python writes it as a PAX header
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def scan(folder: Path, data: bytes) -> list[RawSample]:
    (folder / "x.tar").write_bytes(data)
    return [parse_sample(stored.data) for stored in scan_shard(LocalStore(folder), "x.tar")]


def test_written_shards_read_back_and_are_the_same_bytes_every_time(tmp_path: Path, clip: bytes) -> None:
    samples = make_samples(10, clip)
    first = write_shards(tmp_path / "a", "s", samples, samples_per_shard=4)
    again = write_shards(tmp_path / "b", "s", samples, samples_per_shard=4)
    assert [path.name for path in first] == ["s-000000.tar", "s-000001.tar", "s-000002.tar"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    store = LocalStore(tmp_path / "a")
    stored = [sample for path in first for sample in scan_shard(store, path.name)]
    assert [parse_sample(sample.data) for sample in stored] == samples
    assert store.read_range("s-000000.tar", stored[1].offset, len(stored[1].data)) == stored[1].data


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_dialect_is_read(layout: int, tmp_path: Path) -> None:
    names = ["short", "dir/" * 20 + "deep", "k" * 90]
    if layout != tarfile.USTAR_FORMAT:
        names.append("long" * 60)
    members = {f"{name}.{suffix}": TEXT if suffix == "json" else b"p" for name in names for suffix in ("json", "0.png")}
    found = scan(tmp_path, tar_bytes(members, format=layout))
    assert [sample.key for sample in found] == names
    assert all(sample.media == {0: ("png", b"p")} for sample in found)


def test_names_that_would_escape_a_folder_are_only_keys(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    members = {"../../escape.json": TEXT, "/etc/absolute.json": TEXT, "../escape.json": TEXT}
    assert [sample.key for sample in scan(inside, tar_bytes(members))] == ["../../escape", "/etc/absolute", "../escape"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "x.tar"]


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("a.json")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(FormatError, match="only regular files"):
        scan(tmp_path, stream.getvalue())


def test_a_size_of_thousands_of_digits_and_a_compressed_shard_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "long.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.json")
        member.pax_headers = {"size": "9" * 5000}
        tar.addfile(member)
    with tarfile.open(tmp_path / "small.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    for name, told in (("long.tar", "a size of 5000 characters"), ("small.tar", "is compressed")):
        with pytest.raises(FormatError, match=rf"shard {name} .*{told}"):
            list(scan_shard(LocalStore(tmp_path), name))


def test_a_shard_that_is_a_link_to_nowhere_is_not_left_out_silently(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"a\.tar is no file, or a link that leads nowhere"):
        LocalStore(tmp_path).list(".tar")


def test_a_truncated_or_damaged_shard_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    data = tar_bytes({f"{n}.{s}": TEXT for n in range(3) for s in ("json", "0.png")}, format=tarfile.USTAR_FORMAT)
    members_end = 6 * 2 * BLOCK
    assert len(scan(tmp_path, data[: members_end + 2 * BLOCK])) == 3
    for cut in (0, 100, BLOCK, BLOCK + 10, 2 * BLOCK, 4 * BLOCK, members_end, members_end + BLOCK):
        with pytest.raises(FormatError, match="truncated"):
            scan(tmp_path, data[:cut])
    zeroed = data[: 4 * BLOCK] + bytes(2 * BLOCK) + data[6 * BLOCK :]
    with pytest.raises(FormatError, match="followed by data"):
        scan(tmp_path, zeroed)
    with pytest.raises(FormatError, match="damaged"):
        scan(tmp_path, b"?" + data[1:])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.0.png": b"", "b.json": TEXT}, "no member a.json"),
        ({"a.json": b"[1]"}, "must be an object"),
        ({"a.json": b"\xff"}, "not UTF-8 JSON"),
        ({"a.json": TEXT, "a.png": b""}, "neither KEY.json nor"),
        ({"a.json": TEXT, "a.0.png": b"", "a.0.jpg": b""}, "two members with number 0"),
        ({"a.json": TEXT, "b.json": TEXT, "a.0.png": b""}, "no member a.json"),
    ],
)
def test_samples_that_break_the_format_are_refused(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        scan(tmp_path, tar_bytes(members))


def test_an_index_holds_what_was_written(make_source: Callable[..., Path], clip: bytes) -> None:
    index = open_index(make_source())
    samples = make_samples(20, clip)
    assert [index.read_raw(i) for i in range(len(index))] == samples
    assert [size.kind for size in index.media_sizes(4)] == ["video"]
    assert (index.media_sizes(4)[0].frames, index.media_sizes(4)[0].fps) == (12, 8.0)
    # Sizes are in the order in which pictures are shown, here member 1 before member 0.
    assert [(size.height, size.width) for size in index.media_sizes(2)] == [(39, 52), (34, 52)]


def test_pictures_that_cannot_be_measured_are_left_out_and_listed(make_source: Callable[..., Path]) -> None:
    shown = {"parts": [{"type": "image", "media": 0}]}
    long_picture = RawSample(key="long", content=shown, media={0: ("png", picture_bytes(1, 300))})
    broken = RawSample(key="broken", content=shown, media={0: ("png", b"not a picture")})
    good = RawSample(key="good", content=shown, media={0: ("png", picture_bytes(30, 30))})
    index = open_index(make_source(samples=[long_picture, broken, good]))
    assert [index.read_raw(i).key for i in range(len(index))] == ["good"]
    assert [entry["key"] for entry in index.meta["refused"]] == ["long", "broken"]


def test_an_index_says_what_differs(make_source: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = make_source(clips=False)
    open_index(folder).check(tokenizer)
    other = train_tokenizer(tmp_path / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    from data.encoding.tokenizer import load_tokenizer

    with open(folder / "mixed-000001.tar", "ab") as shard:
        shard.write(bytes(512))
    (folder / "mixed-000002.tar").rename(folder / "new.tar")
    with pytest.raises(MismatchError) as caught:
        open_index(folder).check(load_tokenizer(other))
    for part in ("tokenizer has digest", "mixed-000001.tar has", "mixed-000002.tar is gone", "new.tar is not in"):
        assert part in str(caught.value)
    column = folder / "index" / "offset.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\x01")
    with pytest.raises(MismatchError, match=r"offset\.npy is missing or damaged"):
        open_index(folder)


def test_flipped_bytes_are_fetched_again_once_and_then_fatal(make_source: Callable[..., Path]) -> None:
    index = open_index(make_source(clips=False))
    good = index.store.read_range
    wrong = [True]

    def flip_once(name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        data = good(name, offset, length, etag)
        return data[:-600] + bytes([data[-600] ^ 4]) + data[-599:] if wrong and wrong.pop() else data

    index.store.read_range = flip_once  # type: ignore[method-assign]
    assert index.read_raw(1).key == "sample0001" and not wrong
    index.store.read_range = good  # type: ignore[method-assign]
    place = int(index.columns["offset"][1]) + 700
    shard = index.store.folder / "mixed-000000.tar"  # type: ignore[attr-defined]
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardFault, match="CRC32C"):
        index.read_raw(1)
    index.read_raw(2)


def test_a_failed_writer_leaves_nothing_under_a_final_name(tmp_path: Path, clip: bytes) -> None:
    samples = make_samples(3, clip)
    bad = RawSample(key="has.dot", content={}, media={})
    with pytest.raises(FormatError, match="first dot"):
        write_shards(tmp_path / "a", "s", [*samples, bad], samples_per_shard=8)
    assert not any((tmp_path / "a").iterdir())


def test_stores_that_are_not_there_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no store s3://"):
        open_store("s3://bucket/folder")
    with pytest.raises(ValueError, match="how to reach it"):
        open_store("oss://bucket/folder")
    with pytest.raises(ValueError, match="no folder"):
        open_store(tmp_path / "absent")
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    store = open_store(f"file://{tmp_path}")
    assert store.list(".tar") == [StoredObject(name="a.tar", size=10)]
    assert (store.size("a.tar"), store.read_range("a.tar", 8, 5)) == (10, b"89")


def test_an_empty_folder_has_no_index(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(FormatError, match=r"no \.tar shards"):
        build_index(tmp_path, tokenizer)
    with pytest.raises(MismatchError, match="triptych index"):
        open_index(tmp_path)


def test_text_only_shards_have_empty_media_columns(make_source: Callable[..., Path]) -> None:
    sample = RawSample(key="a", content={"parts": [{"type": "text", "text": "x"}]}, media={})
    index = open_index(make_source(samples=[sample]))
    assert index.media_sizes(0) == [] and index.columns["media_kind"].dtype == np.uint8
