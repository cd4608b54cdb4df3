"""Indexes that are killed and go on, and parts of them that are not what is wanted any more."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.encoding.tokenizer import load_tokenizer
from data.formats.stored import FORMATS, OURS
from data.index import part as index_part
from data.index.build import build_index
from tests.data.conftest import train_tokenizer
from tests.harness.index_sources import Account, account, make_source, replaced, watch_shards

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """An index that was killed again and again, beside one that one process made in one go."""

    kills: int
    differing_files: int
    read_again: int
    """Shards whose part was there, in a run that went on."""
    account: Account
    left_over: int
    """Processes that outlived the one that was killed by seconds."""


def resume_after_kills(folder: Path) -> Resumed:
    """`triptych index` with two readers, killed as soon as some parts are there, then once more to its end."""
    keys = make_source(folder, shards=16, samples_per_shard=100)
    broken, whole = folder / "broken", folder / "whole"
    command = [sys.executable, "-m", "launch.cli", "index", str(folder / "source"), "--readers", "2"]
    command += ["--tokenizer", str(folder / "tokenizer"), "--output", str(broken)]
    kills = 0
    for parts, how in ((1, signal.SIGKILL), (5, signal.SIGINT), (9, signal.SIGKILL)):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
        )
        deadline = time.monotonic() + 60
        while _parts(broken) < parts and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(how)
        kills += process.wait(timeout=30) in (-signal.SIGKILL, 130)
    time.sleep(1.5)
    left_over = sum(str(broken) in command for command in _commands())
    before = _parts(broken)
    tokenizer = load_tokenizer(folder / "tokenizer")
    with watch_shards() as read:
        index = build_index(folder / "source", tokenizer, output=broken)
    build_index(folder / "source", tokenizer, output=whole)
    return Resumed(
        kills=kills,
        differing_files=_differing(broken, whole),
        read_again=before + len(read) - len(index.shards),
        account=account(index, keys),
        left_over=left_over,
    )


def _parts(place: Path) -> int:
    return len(list((place / "parts").glob("*.part")))


def _commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue


def _differing(one: Path, other: Path) -> int:
    names = {path.name for place in (one, other) for path in place.iterdir()}
    return sum(
        not ((one / name).is_file() and (other / name).is_file())
        or (one / name).read_bytes() != (other / name).read_bytes()
        for name in names
    )


class _Stop(Exception):
    pass


def believed_parts(folder: Path) -> dict[str, int]:
    """For each thing that changed after an interruption, shards whose old part was taken all the same."""
    make_source(folder, shards=3, samples_per_shard=4)
    other = train_tokenizer(folder / "other")
    (other / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes() + b"\n")
    two = replace(FORMATS[OURS], version=2)
    by_way: dict[str, tuple[dict[str, Any], list[tuple[Any, str, Any]]]] = {
        "tokenizer": ({"tokenizer": other}, []),
        "template": ({}, [(index_part, "TEMPLATE_DIGEST", "another")]),
        "format": ({"format_name": "webdataset"}, []),
        "format's version": ({}, [(FORMATS, OURS, two)]),
        "version of the index": ({}, [(index_part, "VERSION", -1)]),
        "pictures decoded": ({"decode_pictures": True}, []),
    }
    believed = {}
    for name, (options, patches) in by_way.items():
        source = _interrupted(folder)
        with watch_shards() as read:
            _stopped(source, folder, options, patches)
        believed[name] = 3 - len(read)
    for name, change in (
        ("bytes of a shard, not its size", lambda data: data.replace(b"digit 1", b"digit 3")),
        ("size of a shard", lambda data: data + bytes(1024)),
    ):
        source = _interrupted(folder)
        shard = source / "s-000000.tar"
        shard.write_bytes(change(shard.read_bytes()))
        with watch_shards() as read:
            _stopped(source, folder, {}, [])
        believed[name] = 1 - len(read)
    source = _interrupted(folder)
    torn = 0
    for number, path in enumerate(sorted((source / "index" / "parts").iterdir())):
        data = bytearray(path.read_bytes())
        data[len(data) * (number + 1) // 4] ^= 1
        path.write_bytes(data)
        torn += 1
    with watch_shards() as read:
        _stopped(source, folder, {}, [])
    return believed | {"a flipped bit in a part": torn - len(read)}


def _interrupted(folder: Path) -> Path:
    """A copy of the source with every part of its index, which never was put together."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "source", copy)
    _stopped(copy, folder, {}, [])
    return copy


def _stopped(source: Path, folder: Path, options: dict[str, Any], patches: list[tuple[Any, str, Any]]) -> None:
    def stop(done: int, shards: int, _: int) -> None:
        if done == shards:
            raise _Stop

    options = dict(options)
    tokenizer = load_tokenizer(options.pop("tokenizer", folder / "tokenizer"))
    with ExitStack() as stack, suppress(_Stop):
        for patch in patches:
            stack.enter_context(replaced(*patch))
        build_index(source, tokenizer, stop, **options)
