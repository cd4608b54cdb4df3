"""The same conversations in every format that is read: samples in are samples out, or they are listed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.encoding.tokenizer import load_tokenizer
from data.formats.pack import REPORT, pack
from data.formats.shards import parse_sample, scan_shard
from data.index.build import build_index
from data.store.store import LocalStore
from data.types import RawSample
from tests.data.conftest import picture_bytes, train_tokenizer
from tests.data.test_shards import tar_bytes

NUM = 24
SHOWN = [{"type": "image", "media": 0}, {"type": "text", "text": "Which is larger?"}, {"type": "image", "media": 1}]


def pictures(number: int) -> tuple[bytes, bytes]:
    """The two that sample `number` shows; no two samples share one."""
    return picture_bytes(20 + number, 30, number), picture_bytes(30, 20 + number, number + 1000)


def expected(number: int) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Messages and media that have to come out, written by hand."""
    messages = [{"role": "user", "content": SHOWN}, {"role": "assistant", "content": f"number {number}"}]
    return messages, list(pictures(number))


def _llava(number: int) -> dict[str, Any]:
    asked = {"from": "human", "value": "<image>\nWhich is larger?\n<image>"}
    said = {"from": "gpt", "value": f"number {number}"}
    return {"id": f"n{number}", "image": [f"{number}a.png", f"{number}b.png"], "conversations": [asked, said]}


def _sharegpt(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": "<image>Which is larger?<image>"}
    said = {"role": "assistant", "content": f"number {number}"}
    return {"messages": [asked, said], "images": [f"{number}a.png", f"./{number}b.png"]}


def _qwen(number: int) -> dict[str, Any]:
    first, second = ({"type": "image", "image": f"{number}{letter}.png"} for letter in "ab")
    asked = {"role": "user", "content": [first, {"type": "text", "text": "Which is larger?"}, second]}
    return {"messages": [asked, {"role": "assistant", "content": [{"type": "text", "text": f"number {number}"}]}]}


PACKED: dict[str, tuple[Callable[[int], dict[str, Any]], bool]] = {
    # the record of a sample, and whether the file is JSON lines
    "LLaVA": (_llava, False),
    "ShareGPT": (_sharegpt, False),
    "Qwen messages": (_qwen, True),
}


def _broken(record: Callable[[int], dict[str, Any]], outside: Path) -> list[Any]:
    """Records that must not come out, each wrong in its own way."""
    too_many, too_few, no_answer, absolute = (_llava(number) for number in range(4))
    too_many["image"].append("0a.png")
    too_few["image"].pop()
    no_answer["conversations"].pop()
    absolute["image"][0] = str(outside)
    upwards, linked, gone, url = (_llava(number) for number in range(4))
    upwards["image"][0] = f"../{outside.name}"
    linked["image"][0], gone["image"][0], url["image"][0] = "link.png", "gone.png", "http://a/b.png"
    empty = record(0) | {"conversations": []}
    empty.pop("messages", None)
    return [too_many, too_few, no_answer, absolute, upwards, linked, gone, url, empty, 7]


def packed_faults(folder: Path, name: str) -> dict[str, int]:
    """Of a file with sound and broken records: what is lost, repeated, changed, or kept though it should not be."""
    record, lines = PACKED[name]
    media = folder / "media"
    media.mkdir()
    for number in range(NUM):
        for letter, data in zip("ab", pictures(number), strict=True):
            (media / f"{number}{letter}.png").write_bytes(data)
    outside = folder / "outside.png"
    outside.write_bytes(picture_bytes(9, 9))
    (media / "link.png").symlink_to(outside)
    broken = _broken(record, outside)
    records = [record(number) for number in range(NUM)]
    records[5:5] = broken
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    (folder / "records.json").write_text(text)
    counted = pack(folder / "records.json", media, folder / "shards", samples_per_shard=7)
    found = _read(folder / "shards", "triptych")
    told = [json.loads(line) for line in (folder / "shards" / REPORT).read_text().splitlines()]
    left_out = {line["sample"] for line in told if line["left_out"]}
    places = {int(raw.key) for raw in found}
    sound = {*range(5), *range(5 + len(broken), NUM + len(broken))}
    return {
        "lost": len(set(range(len(records))) - places - left_out),
        "repeated": len(found) - len(places) + len(places & left_out),
        "changed": _changed(found, list(range(NUM))),
        "kept": len(places - sound) + sum(outside.read_bytes() in _bytes(raw) for raw in found),
        "miscounted": abs(counted.records - len(records)) + abs(counted.samples - len(found)),
    }


def webdataset_faults(folder: Path) -> dict[str, int]:
    """The same of a plain webdataset tar, read in place through its index."""
    members: dict[str, bytes] = {}
    for number in range(NUM):
        first, second = pictures(number)
        record = {"conversations": _llava(number)["conversations"]}
        members |= {f"{number:03d}.0.png": first, f"{number:03d}.1.png": second}
        members[f"{number:03d}.json"] = json.dumps(record).encode()
        members |= {f"{number:03d}c.png": first, f"{number:03d}c.txt": b"number %d\n" % number}
    members |= {"x.png": first, "y.json": members["000.json"], "z.png": first, "z.json": b"{"}
    (folder / "source").mkdir()
    (folder / "source" / "0.tar").write_bytes(tar_bytes(members))
    tokenizer = load_tokenizer(train_tokenizer(folder / "tokenizer"))
    index = build_index(folder / "source", tokenizer, format_name="webdataset")
    found = [index.read_raw(i) for i in range(len(index))]
    keys = [raw.key for raw in found]
    refused = {entry["key"] for entry in index.meta["refused"]}
    captions = [raw for raw in found if raw.key.endswith("c")]
    wanted = [{"parts": [{"type": "image", "media": 0}, {"type": "text", "text": f"number {n}"}]} for n in range(NUM)]
    return {
        "lost": len({name.partition(".")[0] for name in members} - set(keys) - refused),
        "repeated": len(keys) - len(set(keys)) + len(refused & set(keys)),
        "changed": _changed([raw for raw in found if not raw.key.endswith("c")], list(range(NUM)))
        + sum(
            raw.content != content or _bytes(raw) != [pictures(n)[0]]
            for n, (raw, content) in enumerate(zip(captions, wanted, strict=False))
        )
        + abs(len(captions) - NUM),
        "kept": len(set(keys) & {"x", "y", "z"}),
        "miscounted": len(refused ^ {"x", "y", "z"}),
    }


def _read(folder: Path, format_name: str) -> list[RawSample]:
    store = LocalStore(folder)
    return [
        parse_sample(stored.data, format_name) for each in store.list(".tar") for stored in scan_shard(store, each.name)
    ]


def _changed(found: list[RawSample], numbers: list[int]) -> int:
    """Samples that are not those expected in their place, and how many there are too few or too many."""
    wrong = 0
    for raw, number in zip(found, numbers, strict=False):
        messages, media = expected(number)
        wrong += raw.content.get("messages") != messages or _bytes(raw) != media
    return wrong + abs(len(found) - len(numbers))


def _bytes(raw: RawSample) -> list[bytes]:
    return [data for _, data in (raw.media[number] for number in sorted(raw.media))]
