"""Damage: a shard is an error that names the byte, a sample is listed, and nothing comes out shorter."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError
from data.index.build import Index, build_index
from tests.harness.index_damage import DAMAGED, SAMPLES, sample, tar


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


@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_sample_is_listed_and_its_neighbours_are_kept(name: str, build: Callable[..., Index]) -> None:
    members, reason = SAMPLES[name]
    index = build(tar(*sample("a"), *members, *sample("c")))
    assert keys(index) == ["first", "a", *(["d"] if any(name == "d.json" for name, _ in members) else []), "c"]
    refused = index.meta["refused"]
    assert {entry["key"] for entry in refused} == {"b"}
    assert any(reason in entry["reason"] for entry in refused)


def test_a_source_without_a_sound_sample_is_no_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(tar(("a.json", b"{")))
    with pytest.raises(FormatError, match=r"hold no usable sample; the first refused: .*0\.tar.*not UTF-8 JSON"):
        build_index(tmp_path, tokenizer, skip_damaged=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "0.tar").write_bytes(tar())
    with pytest.raises(FormatError, match=r"the 1 shards in .* hold no usable sample; they are empty"):
        build_index(tmp_path / "empty", tokenizer)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "0.tar").write_bytes(tar(*sample("a")))
    (tmp_path / "taken").touch()
    with pytest.raises(ValueError, match=r"cannot be written to .*taken.*--output names another folder"):
        build_index(tmp_path, tokenizer, output=tmp_path / "taken" / "index")
