"""Packing: every record is in a shard or in the report, and no name leads out of the media folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.formats.pack import REPORT, pack
from data.formats.shards import parse_sample, scan_shard
from data.store.store import LocalStore
from data.types import RawSample
from tests.data.conftest import picture_bytes
from tests.data.test_formats import turns


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "deep er").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture_bytes(20, 30))
    (folder / "deep er" / "b.JPG").write_bytes(picture_bytes(20, 30, 1, "JPEG"))
    (tmp_path / "outside.png").write_bytes(picture_bytes(20, 30))
    (folder / "link_out.png").symlink_to(tmp_path / "outside.png")
    (folder / "link_in.png").symlink_to(folder / "a.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.png")
    return folder


def record_of(name: str) -> dict[str, Any]:
    return {"id": name, "image": name, "conversations": turns("<image>\nWhat?", "7")}


def read_shards(folder: Path) -> list[RawSample]:
    store = LocalStore(folder)
    return [parse_sample(stored.data) for each in store.list(".tar") for stored in scan_shard(store, each.name)]


def test_names_that_leave_the_media_folder_are_listed_and_read_nothing(media: Path, tmp_path: Path) -> None:
    good = ["a.png", "deep er/b.JPG", "link_in.png", f"file://{media}/deep%20er/b.JPG", "./deep er/../a.png"]
    outside = tmp_path / "outside.png"
    bad = ["../outside.png", str(outside), f"file://{outside}", "link_out.png", "circle.png", "gone.png", "empty.png"]
    bad += ["pipe.png", "deep er", "http://a/b.png", "data:image/png;base64,AAAA", "a\0.png", "x" * 999]
    records = tmp_path / "records.jsonl"
    records.write_text("\n".join(json.dumps(record_of(name)) for name in [*good, *bad]) + "\n\nnot JSON\n")
    packed = pack(records, media, tmp_path / "out", samples_per_shard=2)
    assert (packed.records, packed.samples, packed.listed) == (len(good) + len(bad) + 1, len(good), len(bad) + 1)
    kept = read_shards(tmp_path / "out")
    assert [sample.content["id"] for sample in kept] == good
    assert [sample.media[0][0] for sample in kept] == ["png", "jpg", "png", "jpg", "png"]
    told = [json.loads(line) for line in (tmp_path / "out" / REPORT).read_text().splitlines()]
    assert [line["id"] for line in told] == [*bad, None] and all(line["left_out"] for line in told)
    assert {line["field"] for line in told} == {"image", "record"}
    for number in (0, 1, 2, 3):
        assert "leads out of the media folder" in told[number]["reason"]
    assert str(tmp_path / "outside.png") not in told[0]["reason"]


def test_a_json_list_and_json_lines_give_the_same_shards(media: Path, tmp_path: Path) -> None:
    records = [record_of("a.png"), record_of("deep er/b.JPG"), {"conversations": turns("hello", "\u00e9")}]
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps(records, indent=1))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    outputs = [tmp_path / name / "mine" for name in ("list.json_out", "lines.jsonl_out")]
    for output in outputs:
        assert pack(tmp_path / output.parent.name.removesuffix("_out"), media, output).listed == 0
    first, second = ({path.name: path.read_bytes() for path in output.iterdir()} for output in outputs)
    assert first == second and list(first) == ["mine-000000.tar"]


def test_packing_writes_all_or_nothing(media: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"id": 1},')
    with pytest.raises(ValueError, match="begins as a JSON list but is none"):
        pack(tmp_path / "bad.json", media, tmp_path / "out")
    (tmp_path / "one.jsonl").write_text(json.dumps(record_of("a.png")))
    with pytest.raises(ValueError, match="no folder"):
        pack(tmp_path / "one.jsonl", media / "nowhere", tmp_path / "out")

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "one.jsonl", media, tmp_path / "out", progress=stop)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name and path.name != "outside.png"]
    pack(tmp_path / "one.jsonl", media, tmp_path / "out")
    with pytest.raises(ValueError, match="is in use"):
        pack(tmp_path / "one.jsonl", media, tmp_path / "out")


def test_an_output_that_cannot_be_replaced_is_refused_before_anything_is_read(media: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link or a mount point"):
        pack(tmp_path / "no.json", media, tmp_path / "link")


def test_two_packers_of_one_output_do_not_meet(media: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"text": "plain"}) + "\n")
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    (left / "of one that was killed").touch()

    def another(*_: object) -> None:
        with pytest.raises(ValueError, match="another process is packing"):
            pack(records, media, tmp_path / "out")

    assert pack(records, media, tmp_path / "out", progress=another).samples == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out-000000.tar"] and not left.exists()


def test_hostile_text_is_listed(media: Path, tmp_path: Path) -> None:
    lines = [
        '{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "\\ud800"}]}',
        "[" * 100_000,
        "{}",
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(["{\"x\": 1}", *lines]))  # fmt: skip
    packed = pack(tmp_path / "r.jsonl", media, tmp_path / "out")
    assert (packed.records, packed.samples, packed.listed) == (4, 0, 4)
