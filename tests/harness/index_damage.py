"""Damaged shards and samples of every kind, and what an index makes of them."""

import io
import re
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from data.encoding.tokenizer import load_tokenizer
from data.errors import FormatError
from data.formats.shards import BLOCK
from data.index import probe
from data.index.build import build_index
from data.index.probe import PictureProbe
from tests.data.conftest import picture_bytes, train_tokenizer
from tests.harness.hostile_pictures import CRASHES, HANGS, start_hostile
from tests.harness.index_sources import Account, account, replaced

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

SAMPLES: dict[str, tuple[Members, str]] = {
    # the members of sample b, and what has to be said of it
    "a picture's name twice": ([*sample("b"), ("b.0.png", PICTURE)], "two members b.0.png"),
    "the JSON's name twice": ([*sample("b"), ("b.json", SHOWN)], "two members b.json"),
    "a number twice": ([*sample("b"), ("b.0.jpg", PICTURE)], "two members with number 0"),
    "no JSON": (sample("b")[:1], "no member b.json"),
    "no picture": (sample("b")[1:], "wants member 0, there are []"),
    "JSON cut": ([("b.0.png", PICTURE), ("b.json", SHOWN[:9])], "not UTF-8 JSON"),
    "JSON of other bytes": ([("b.0.png", PICTURE), ("b.json", b'{"x": "\xff"}')], "not UTF-8 JSON"),
    "JSON without end": ([("b.0.png", PICTURE), ("b.json", b"[" * 50_000)], "not UTF-8 JSON"),
    "a member of no meaning": ([*sample("b"), ("b.md5", b"")], "neither KEY.json nor"),
    "more pictures than parts": ([*sample("b"), ("b.1.png", PICTURE)], "no part shows member 1"),
    "an empty picture": ([("b.0.png", b""), ("b.json", SHOWN)], "not a picture"),
    "members apart": ([sample("b")[0], *sample("d"), sample("b")[1]], "comes back at byte"),
    "a key twice": ([*sample("b"), *sample("d"), *sample("b")], "comes back at byte"),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What became of a fault: 0 everywhere is what is wanted."""

    unnamed: int
    """1 if it was not refused or listed with its place or reason."""
    account: Account


def shard_fault(folder: Path, name: str) -> Fault:
    """A shard damaged, refused, left out on request, and at last restored: its samples are there then, once each."""
    data, byte = DAMAGED[name]
    train_tokenizer(folder / "tokenizer")
    tokenizer, source = load_tokenizer(folder / "tokenizer"), folder / "source"
    source.mkdir()
    (source / "0.tar").write_bytes(tar(*sample("first")))
    (source / "1.tar").write_bytes(data)
    try:
        build_index(source, tokenizer)
        said = ""
    except FormatError as error:
        said = str(error)
    left_out = build_index(source, tokenizer, skip_damaged=True)
    listed = [entry["reason"] for entry in left_out.meta["damaged"] if entry["shard"] == "1.tar"]
    named = all(re.search(rf"shard 1\.tar .* byte {byte}\b", text) for text in (said, *(listed or [""])))
    (source / "1.tar").write_bytes(WHOLE)
    shorter = account(left_out, ["first"])
    restored = account(build_index(source, tokenizer), ["first", "a", "b", "c"])
    return Fault(
        unnamed=not named,
        account=Account(
            lost=restored.lost + shorter.lost,
            repeated=restored.repeated + len(left_out) - 1,  # what came of a damaged shard all the same
            misplaced=restored.misplaced,
        ),
    )


def sample_fault(folder: Path, name: str) -> Fault:
    """A damaged sample between sound ones."""
    members, reason = SAMPLES[name]
    train_tokenizer(folder / "tokenizer")
    (folder / "source").mkdir()
    (folder / "source" / "0.tar").write_bytes(tar(*sample("a"), *members, *sample("c")))
    index = build_index(folder / "source", load_tokenizer(folder / "tokenizer"))
    between = ["d"] if any(name == "d.json" for name, _ in members) else []
    return Fault(
        unnamed=not any(reason in each["reason"] for each in index.meta["refused"] if each["key"] == "b"),
        account=account(index, ["a", "b", *between, "c"]),
    )


def hostile_pictures() -> dict[str, float]:
    """Pictures that crash or hang their decoder among sound ones: how many are not told apart, and what it costs."""
    pictures = [PICTURE, PICTURE + CRASHES, PICTURE, PICTURE + HANGS, PICTURE + HANGS, PICTURE, PICTURE]
    wanted = [data == PICTURE for data in pictures]
    with replaced(probe, "start_child", start_hostile(probe.start_child)):
        looking = PictureProbe(seconds=1.0)
        looking.sizes([PICTURE])  # the first child has started
        started = time.monotonic()
        found = looking.sizes(pictures)
        seconds = time.monotonic() - started
        looking.close()
    sound = [isinstance(size, tuple) and size == (40, 40) for size in found]
    return {
        "sound": sum(good and not seen for good, seen in zip(wanted, sound, strict=True)),
        "hostile": sum(seen and not good for good, seen in zip(wanted, sound, strict=True)),
        "seconds": seconds,
    }
