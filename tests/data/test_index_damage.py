"""Damage: a shard is an error that names the byte, a sample is listed, and nothing comes out shorter."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import FormatError
from data.index import Index, build_index
from data.shards import BLOCK
from data.tokenizer import Tokenizer
from tests.data.conftest import picture_bytes

SHOWN = b'{"parts": [{"type": "image", "media": 0}, {"type": "text", "text": "a 7"}]}'
PICTURE = picture_bytes(40, 40)
_DATA = BLOCK + -(-len(PICTURE) // BLOCK) * BLOCK  # a picture's member
_SAMPLE = _DATA + 2 * BLOCK

Members = list[tuple[str, bytes]]


def tar(*members: tuple[str, bytes]) -> bytes:
    """A tar that may hold a name twice."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as writer:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def sample(key: str) -> Members:
    return [(f"{key}.0.png", PICTURE), (f"{key}.json", SHOWN)]


WHOLE = tar(*sample("a"), *sample("b"), *sample("c"))
END = 3 * _SAMPLE
DAMAGED: dict[str, tuple[bytes, int]] = {
    # what is done to the shard, and the byte that has to be named
    "cut in a member's data": (WHOLE[: _SAMPLE + 2 * BLOCK], _SAMPLE),
    "cut in a header": (WHOLE[: _SAMPLE + 100], _SAMPLE + 100),
    "cut between samples": (WHOLE[: 2 * _SAMPLE], 2 * _SAMPLE),
    "cut between picture and JSON": (WHOLE[: _SAMPLE + _DATA], _SAMPLE + _DATA),
    "cut before the end-of-archive blocks": (WHOLE[:END], END),
    "cut between the end-of-archive blocks": (WHOLE[: END + BLOCK], END),
    "a sample's blocks zeroed": (WHOLE[:_SAMPLE] + bytes(_SAMPLE) + WHOLE[2 * _SAMPLE :], _SAMPLE),
    "a header's bit flipped": (WHOLE[:_SAMPLE] + b"?" + WHOLE[_SAMPLE + 1 :], _SAMPLE),
    "empty": (b"", 0),
}


@pytest.fixture
def build(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Index]:
    """Index a sound shard and the one given."""

    def make(second: bytes, **options: bool) -> Index:
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / "0.tar").write_bytes(tar(*sample("first")))
        (tmp_path / "s" / "1.tar").write_bytes(second)
        return build_index(tmp_path / "s", tokenizer, **options)  # type: ignore[arg-type]

    return make


def keys(index: Index) -> list[str]:
    return [index.read_raw(i).key for i in range(len(index))]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_shard_stops_the_index_or_is_listed_whole(
    name: str, build: Callable[..., Index], tokenizer: Tokenizer
) -> None:
    data, byte = DAMAGED[name]
    with pytest.raises(
        FormatError, match=rf"shard 1\.tar \({len(data)} bytes\).* byte {byte}\b.*--skip-damaged-shards"
    ):
        build(data)
    index = build(data, skip_damaged=True)
    assert keys(index) == ["first"] and index.meta["refused"] == []
    (listed,) = index.meta["damaged"]
    assert listed["shard"] == "1.tar" and f" byte {byte}" in listed["reason"]
    index.check(tokenizer)
    with pytest.raises(FormatError):  # the part that was skipped is not taken for a sound one
        build(data)


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        ([*sample("b"), ("b.0.png", PICTURE)], {"b": "two members b.0.png"}),
        ([*sample("b"), ("b.json", SHOWN)], {"b": "two members b.json"}),
        ([*sample("b"), ("b.0.jpg", PICTURE)], {"b": "two members with number 0"}),
        (sample("b")[:1], {"b": "no member b.json"}),
        (sample("b")[1:], {"b": "wants member 0, there are []"}),
        ([("b.0.png", PICTURE), ("b.json", b"{")], {"b": "not UTF-8 JSON"}),
        ([("b.0.png", PICTURE), ("b.json", b'{"x": "\xff"}')], {"b": "not UTF-8 JSON"}),
        ([("b.0.png", PICTURE), ("b.json", b"[" * 50_000)], {"b": "not UTF-8 JSON"}),
        ([*sample("b"), ("b.md5", b"")], {"b": "neither KEY.json nor"}),
        ([*sample("b"), ("b.1.png", PICTURE)], {"b": "no part shows member 1"}),
        ([("b.0.png", b""), ("b.json", SHOWN)], {"b": "not a picture"}),
        ([sample("b")[0], *sample("d"), sample("b")[1]], {"b": "comes back at byte"}),
        ([*sample("b"), *sample("d"), *sample("b")], {"b": "comes back at byte"}),
    ],
)
def test_a_damaged_sample_is_listed_and_its_neighbours_are_kept(
    members: Members, refused: dict[str, str], build: Callable[..., Index]
) -> None:
    index = build(tar(*sample("a"), *members, *sample("c")))
    assert keys(index) == ["first", "a", *(["d"] if any(name == "d.json" for name, _ in members) else []), "c"]
    found = {entry["key"]: entry["reason"] for entry in reversed(index.meta["refused"])}
    assert found.keys() == refused.keys()
    for key, reason in refused.items():
        assert any(reason in entry["reason"] for entry in index.meta["refused"] if entry["key"] == key)


def test_a_source_without_a_sound_sample_is_no_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(tar(("a.json", b"{")))
    with pytest.raises(FormatError, match=r"hold no usable sample; refused: .*0\.tar.*not UTF-8 JSON"):
        build_index(tmp_path, tokenizer, skip_damaged=True)
