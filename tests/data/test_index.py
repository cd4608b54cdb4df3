"""Building an index: by whom and when does not matter, what breaks is named, and what is there is compared."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.encoding.encode import encode_sample, visual_parts
from data.encoding.render import render_sample
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.errors import FormatError, MismatchError, SampleError
from data.formats.shards import write_shards
from data.index.build import build_index, open_index
from data.index.check import compare_with_shards
from data.index.count import count_tokens
from data.index.measure import Measurer
from data.index.part import IndexSettings, load_part
from data.index.probe import PictureProbe
from data.index.shard import ShardIndexer
from data.store.store import LocalStore, StoredObject
from data.types import MediaSize, RawSample
from tests.data.conftest import IMAGE, VIDEO, make_samples, picture_bytes, train_tokenizer
from tests.harness.hostile_pictures import CRASHES, HANGS, start_hostile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shards(tmp_path: Path, clip: bytes) -> Path:
    """Five shards without clips, and without an index."""
    samples = [sample for sample in make_samples(30, clip) if sample.content["source"] != "clips"]
    write_shards(tmp_path / "mixed", "mixed", samples, samples_per_shard=5)
    return tmp_path / "mixed"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index_interrupted(shards: Path, tokenizer: Tokenizer, done: int, **options: Any) -> None:
    def stop(found: int, *_: int) -> None:
        if found == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(shards, tokenizer, stop, **options)


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards whose samples were read, in order."""
    seen: list[str] = []
    read = ShardIndexer._index

    def watched(self: ShardIndexer, stored: StoredObject) -> Any:
        seen.append(stored.name)
        return read(self, stored)

    monkeypatch.setattr(ShardIndexer, "_index", watched)
    return seen


def test_any_number_of_readers_gives_the_same_bytes(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for readers in (0, 1, 2):
        index = build_index(shards, tokenizer, readers=readers, output=tmp_path / str(readers))
        assert len(index) == 24
    assert files(tmp_path / "0") == files(tmp_path / "1") == files(tmp_path / "2")
    assert not (shards / "index").exists()


def test_an_interrupted_index_goes_on_and_comes_out_the_same(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path, indexed: list[str]
) -> None:
    build_index(shards, tokenizer, output=tmp_path / "whole")
    indexed.clear()
    index_interrupted(shards, tokenizer, 3)
    build_index(shards, tokenizer)
    assert indexed == [f"mixed-{number:06d}.tar" for number in range(5)]
    assert files(shards / "index") == files(tmp_path / "whole")


def test_a_part_is_kept_only_for_the_same_shard_read_in_the_same_way(
    shards: Path, tokenizer: Tokenizer, tmp_path: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = train_tokenizer(tmp_path / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    index_interrupted(shards, tokenizer, 2)
    for change in ({"tokenizer": load_tokenizer(other)}, {"decode_pictures": True}, {"format_name": "webdataset"}):
        indexed.clear()
        index_interrupted(shards, change.pop("tokenizer", tokenizer), 2, **change)  # type: ignore[arg-type]
        assert len(indexed) == 2, change
    index_interrupted(shards, tokenizer, 2)
    shard = shards / "mixed-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"digit 1 moves", b"digit 2 moves"))  # of the same size
    indexed.clear()
    index_interrupted(shards, tokenizer, 2)
    assert indexed == [shard.name]
    monkeypatch.setattr("data.index.part.TEMPLATE_DIGEST", "another")
    indexed.clear()
    index_interrupted(shards, tokenizer, 2)
    assert len(indexed) == 2


def test_a_torn_part_is_made_again(shards: Path, tokenizer: Tokenizer, indexed: list[str]) -> None:
    index_interrupted(shards, tokenizer, 5)
    for number, path in enumerate(sorted((shards / "index" / "parts").iterdir())[:3]):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes([bytes(data), bytes(data[:200]), b""][number])
    indexed.clear()
    assert len(build_index(shards, tokenizer)) == 24 and len(indexed) == 3


def test_a_store_with_etags_is_believed_about_what_changed(
    shards: Path, tokenizer: Tokenizer, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    etags = dict.fromkeys((path.name for path in shards.iterdir()), "one")
    asked: list[str | None] = []
    read, listed = LocalStore.read_range, LocalStore.list

    def list_with_etags(self: LocalStore, suffix: str) -> list[StoredObject]:
        return [replace(each, etag=etags[each.name]) for each in listed(self, suffix)]

    def read_range(self: LocalStore, name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        asked.append(etag)
        return read(self, name, offset, length)

    monkeypatch.setattr(LocalStore, "list", list_with_etags)
    monkeypatch.setattr(LocalStore, "read_range", read_range)
    index_interrupted(shards, tokenizer, 3)
    etags["mixed-000001.tar"] = "two"
    indexed.clear()
    index = build_index(shards, tokenizer)
    assert indexed == ["mixed-000001.tar", "mixed-000003.tar", "mixed-000004.tar"]
    assert [shard.etag for shard in index.shards] == ["one", "two", "one", "one", "one"]
    index.check(tokenizer)
    asked.clear()
    assert index.read_raw(6).key and asked == ["two"]
    etags["mixed-000004.tar"] = "three"
    with pytest.raises(MismatchError, match=r"mixed-000004\.tar has etag three, was indexed with one"):
        index.check(tokenizer)


def test_a_killed_reader_is_replaced(shards: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    build_index(shards, tokenizer, output=tmp_path / "whole")
    killed = []

    def kill_one(done: int, *_: int) -> None:
        if not killed:
            killed.extend(children("data.index.reader")[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    build_index(shards, tokenizer, kill_one, readers=2)
    assert killed and files(shards / "index") == files(tmp_path / "whole")
    assert not children("data.index.reader") and not children("data.index.probe_child")


def children(module: str) -> list[int]:
    """Processes of this one that run `module`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, parent = (path / "cmdline").read_bytes(), (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid() and module.encode() in command:
            found.append(int(path.name))
    return found


def test_readers_import_no_torch() -> None:
    code = "import sys, data.index.reader, data.index.probe_child; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=250)


def test_pictures_that_hang_or_crash_the_decoder_are_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data.index import probe

    monkeypatch.setattr(probe, "start_child", start_hostile(probe.start_child))
    good = picture_bytes(20, 30)
    pictures = [good, good + CRASHES, good, b"no picture", good + HANGS, good + HANGS, good]
    looking = PictureProbe(seconds=3.0)
    found = looking.sizes(pictures)
    assert [found[place] for place in (0, 2, 6)] == [(20, 30)] * 3
    reasons = [str(found[place]) for place in (1, 3, 4, 5)]
    assert reasons[0].endswith("ended its decoder") and reasons[1].startswith("not a picture of the formats")
    assert all("passed its deadline of 3.0 s" in reason for reason in reasons[2:])
    looking.close()
    assert not children("tests.harness.hostile_pictures")


def test_a_child_that_somebody_else_kills_costs_no_picture() -> None:
    looking = PictureProbe()
    good = picture_bytes(20, 30)
    assert looking.sizes([good]) == [(20, 30)]
    for pid in children("data.index.probe_child"):
        os.kill(pid, signal.SIGKILL)
    assert looking.sizes([good, good]) == [(20, 30)] * 2
    looking.close()


def test_pictures_are_decoded_on_request(tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = picture_bytes(60, 60, kind="JPEG")
    shown = {"parts": [{"type": "image", "media": 0}]}
    samples = [
        RawSample(key=key, content=shown, media={0: ("jpg", data)})
        for key, data in (("cut", whole[: len(whole) // 2]), ("whole", whole))
    ]
    write_shards(tmp_path / "s", "s", samples, 9)
    assert len(build_index(tmp_path / "s", tokenizer)) == 2
    index = build_index(tmp_path / "s", tokenizer, decode_pictures=True)
    assert len(index) == 1 and index.meta["pictures"] == "decoded"
    assert "sample cut, member 0: picture cannot be decoded" in index.meta["refused"][0]["reason"]


def test_counting_many_texts_at_once_counts_the_same(tokenizer: Tokenizer, clip: bytes) -> None:
    samples: list[dict] = [sample.content for sample in make_samples(20, clip)]
    samples += [
        {"parts": [{"type": "text", "text": "a<|box_start|>(1,2)<|box_end|>b <|im_end|> \u00e9"}]},
        {"messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": " x\n\n y"}]},
        {"parts": [{"type": "text", "text": ""}]},
    ]
    expected = []
    for sample in samples:
        sizes = [MediaSize(kind="image", height=56, width=56) for _ in visual_parts(sample)]
        for place, (kind, _) in enumerate(visual_parts(sample)):
            if kind == "video":
                sizes[place] = MediaSize(kind="video", height=56, width=56, frames=8, fps=4.0)
        encoded = encode_sample(sample, sizes, tokenizer, IMAGE, VIDEO)
        expected.append((len(encoded.tokens) - len(encoded.visual_index), (encoded.targets >= 0).sum()))
    assert count_tokens([render_sample(sample) for sample in samples], tokenizer) == expected


def test_samples_whose_parts_and_members_do_not_agree_are_left_out(make_source: Callable[..., Path]) -> None:
    part = {"type": "image", "media": 0}
    picture = ("png", picture_bytes(30, 30))
    samples = [
        RawSample(key="good", content={"parts": [part, part]}, media={0: picture}),
        RawSample(key="too_few", content={"parts": [part, {"type": "image", "media": 1}]}, media={0: picture}),
        RawSample(key="too_many", content={"parts": [part]}, media={0: picture, 1: picture}),
        RawSample(key="no_parts", content={"text": "x"}, media={}),
    ]
    index = open_index(make_source(samples=samples))
    assert [index.read_raw(i).key for i in range(len(index))] == ["good"]
    reasons = {entry["key"]: entry["reason"] for entry in index.meta["refused"]}
    assert "wants member 1, there are [0]" in reasons["too_few"] and "no part shows member 1" in reasons["too_many"]
    assert "needs `parts` or `messages`" in reasons["no_parts"]


def test_a_measurer_gives_each_sample_its_own_error(clip: bytes) -> None:
    measurer = Measurer(decode_pictures=False)
    unshown = RawSample(key="x", content={"parts": [{"type": "text", "text": "x"}]}, media={0: ("png", b"")})
    found = measurer.measure([(raw, render_sample(raw.content)) for raw in [*make_samples(4, clip), unshown]])
    measurer.close()
    assert [len(sizes) if isinstance(sizes, list) else type(sizes) for sizes in found] == [0, 1, 2, 1, FormatError]
    assert not any(isinstance(sizes, SampleError) for sizes in found)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_comparing_in_full_finds_what_a_listing_does_not(make_source: Callable[..., Path]) -> None:
    folder = make_source(clips=False)
    index = open_index(folder)
    assert compare_with_shards(index, 2) == []
    place = int(index.columns["offset"][1]) + 600
    flip(folder / "mixed-000000.tar", place)
    flip(folder / "mixed-000001.tar", -10)  # in no sample
    told = compare_with_shards(open_index(folder), 2)
    assert [text.split(" has ")[0] for text in told] == [
        "shard mixed-000000.tar",
        f"sample 1 at {index.where(1)}",
        "shard mixed-000001.tar",
    ]
    (folder / "mixed-000002.tar").unlink()
    assert "shard mixed-000002.tar is gone" in compare_with_shards(open_index(folder), 1)


def test_a_start_looks_into_shards_that_have_no_etag(
    make_source: Callable[..., Path], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_source(clips=False)
    index = open_index(folder)
    index.check(tokenizer)
    last = int(np.flatnonzero(index.columns["shard"] == 1)[-1])
    flip(folder / "mixed-000001.tar", int(index.columns["offset"][last]) + 700)
    words = r"shard mixed-000001\.tar changed since it was indexed.*CRC32C"
    with pytest.raises(MismatchError, match=words):
        open_index(folder).check(tokenizer)
    for name, few in (("START_SHARDS", 1), ("START_BYTES", 100)):  # of more there is no looking into each
        with monkeypatch.context() as bounded:
            bounded.setattr("data.index.file." + name, few)
            open_index(folder).check(tokenizer)
    flip(folder / "mixed-000001.tar", int(index.columns["offset"][last]) + 700)
    flip(folder / "mixed-000001.tar", int(index.columns["offset"][last - 1]) + 700)
    open_index(folder).check(tokenizer)  # seen when the sample is read


def test_an_index_of_another_format_version_is_refused(
    make_source: Callable[..., Path], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.formats.stored import FORMATS

    index = open_index(make_source(clips=False))
    monkeypatch.setitem(FORMATS, "triptych", replace(FORMATS["triptych"], version=2))
    with pytest.raises(MismatchError, match="reads its shards as triptych 1, this code knows"):
        index.check(tokenizer)


def test_a_part_with_another_name_inside_is_not_believed(shards: Path, tokenizer: Tokenizer) -> None:
    index_interrupted(shards, tokenizer, 2)
    parts = shards / "index" / "parts"
    settings = IndexSettings(source=str(shards), parts=str(parts), tokenizer="", tokenizer_digest=tokenizer.digest)
    one, other = (settings.part_path(f"mixed-00000{number}.tar") for number in (0, 1))
    other.write_bytes(one.read_bytes())
    assert load_part(settings, "mixed-000000.tar") is not None and load_part(settings, "mixed-000001.tar") is None


def test_columns_have_the_places_of_the_shards(shards: Path, tokenizer: Tokenizer) -> None:
    index = build_index(shards, tokenizer)
    assert np.array_equal(np.bincount(index.columns["shard"]), [5, 5, 5, 5, 4])
    assert int(index.columns["media_end"][-1]) == len(index.columns["media_kind"])
    assert [len(index.media_sizes(i)) for i in range(4)] == [0, 1, 2, 1]


def test_json_that_is_no_index_is_damaged(make_source: Callable[..., Path]) -> None:
    place = make_source() / "index" / "index.json"
    whole = json.loads(place.read_text())
    for text in ("[]", json.dumps(whole | {"columns": {}})):
        place.write_text(text)
        with pytest.raises(MismatchError, match=r"damaged.*build"):
            open_index(place.parent.parent)
