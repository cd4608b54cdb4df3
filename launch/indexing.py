"""`triptych index` and `triptych pack`: from what others wrote to sources that a run can train on."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.encoding.tokenizer import load_tokenizer
from data.errors import MismatchError
from data.formats.pack import REPORT
from data.formats.pack import pack as pack_records
from data.formats.stored import OURS
from data.index.build import build_index, open_index
from data.index.check import compare_with_shards
from data.index.mmap_text import LONGEST_DOCUMENT, TextIndex, build_text, is_text
from data.store.config import OssConfig

_SHOWN = 3  # of a list that the index holds whole


def index(
    source: str,
    tokenizer: Path,
    *,
    output: Path | None = None,
    readers: int | None = None,
    format_name: str = OURS,
    decode_pictures: bool = False,
    skip_damaged: bool = False,
    oss: OssConfig | None = None,
) -> int:
    """Build the index of `source`; the exit code, 0 when it is there. Raises ValueError saying what is wrong."""
    with _Line("finished shards are kept, and the same command goes on from there") as line:
        built = build_index(
            source,
            load_tokenizer(tokenizer),
            line.progress,
            output=output,
            readers=readers or len(os.sched_getaffinity(0)),
            format_name=format_name,
            decode_pictures=decode_pictures,
            skip_damaged=skip_damaged,
            oss=oss,
        )
    for told in _left_out(built.meta):
        print(told)
    return 0


def index_text(source: Path, tokenizer: Path, prefix: Path | None) -> int:
    """Turn lines of `{"text": ...}` into token files; 1 if some were left out, which are named."""
    prefix = prefix or source.with_suffix("")
    with _Line(f"nothing was written to {prefix}.bin, the same command starts over") as line:
        refused = build_text(source, prefix, load_tokenizer(tokenizer), line.documents)
    print(f"{len(TextIndex(prefix, LONGEST_DOCUMENT))} documents are in {prefix}.bin; a source's path is {prefix}")
    for told in refused[:_SHOWN]:
        print(told)
    if refused:
        print(f"{len(refused)} line(s) were left out")
    return 1 if refused else 0


def check_text(source: Path, tokenizer: Path, prefix: Path | None) -> int:
    """Compare token files with tokenizer and every byte that was written; 1 if anything differs, which is named."""
    prefix = prefix or source.with_suffix("")
    if not is_text(str(prefix)):
        raise MismatchError(f"no {prefix}.idx; make it with `triptych index {source} --tokenizer FOLDER`")
    opened = TextIndex(prefix, LONGEST_DOCUMENT)
    faults = opened.compare()
    try:
        opened.check(load_tokenizer(tokenizer))
    except MismatchError as error:
        faults.append(str(error))
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{len(opened)} documents in {prefix}.bin are as written")
    return 1 if faults else 0


def check(
    source: str,
    tokenizer: Path,
    *,
    output: Path | None = None,
    readers: int | None = None,
    oss: OssConfig | None = None,
) -> int:
    """Compare an index with tokenizer, template and every byte of its shards; 1 if anything differs, which is named."""
    opened = open_index(source, output, oss)
    faults = []
    try:
        opened.check(load_tokenizer(tokenizer))
    except MismatchError as error:
        faults.append(str(error))
    with _Line("not everything was compared") as line:
        faults += compare_with_shards(opened, readers or len(os.sched_getaffinity(0)), line.checked)
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{len(opened)} samples in {len(opened.shards)} shards are as indexed")
    return 1 if faults else 0


def pack(records: Path, media: Path, output: Path, samples_per_shard: int) -> int:
    """Write shards from a file of conversations; 1 if something of it does not map, which the report lists."""
    with _Line(f"nothing was written to {output}") as line:
        packed = pack_records(records, media, output, samples_per_shard, line.packed)
    print(f"{packed.samples} of {packed.records} samples are in {output}", end="")
    print(f"; {packed.listed} thing(s) did not map, listed in {output / REPORT}" if packed.listed else "")
    return 1 if packed.listed else 0


def _left_out(meta: dict[str, Any]) -> Iterator[str]:
    """What the index does not hold, in a few lines."""
    for name, what in (("damaged", "damaged shard(s)"), ("refused", "sample(s)")):
        if listed := meta[name]:
            yield f"left out {len(listed)} {what}, listed in index.json: {_some(listed)}"
    if unmapped := meta["unmapped"]:
        shown = ", ".join(f"{name} ({count})" for name, count in list(unmapped.items())[:_SHOWN])
        yield f"has no place in the format, of samples that are kept: {shown}"


def _some(listed: Sequence[Any]) -> str:
    return "; ".join(str(each) for each in listed[:_SHOWN]) + (" ..." if len(listed) > _SHOWN else "")


class _Line:
    """One line that is written over: how far it is, how fast, and how long it may take."""

    def __init__(self, interrupted: str) -> None:
        """`interrupted`: what has become of the work when Ctrl-C ends it, for KeyboardInterrupt to tell."""
        self._interrupted = interrupted
        self._started = time.monotonic()
        self._open = False

    def __enter__(self) -> "_Line":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._open:
            print(flush=True)  # go on below the line
        if kind is KeyboardInterrupt:
            raise KeyboardInterrupt(self._interrupted)

    def progress(self, done: int, shards: int, samples: int) -> None:
        """After each shard."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        left = seconds / done * (shards - done)
        rate = f"{samples / seconds:.0f} a second" + (f", {left:.0f} s left" if done < shards else "")
        self._write(f"{done} of {shards} shards, {samples} samples, {rate}")

    def documents(self, documents: int, share: float) -> None:
        """After some documents of a text."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        left = f", {seconds / share * (1 - share):.0f} s left" if 0 < share < 1 else ""
        self._write(f"{documents} documents, {share:.0%} of the text, {documents / seconds:.0f} a second{left}")

    def packed(self, records: int, samples: int) -> None:
        """After each record."""
        if records % 100 == 0:
            self._write(f"{records} records read, {samples} samples kept")

    def checked(self, done: int, shards: int) -> None:
        """After each shard of a check."""
        self._write(f"{done} of {shards} shards compared")

    def _write(self, text: str) -> None:
        print(f"\r{text:<70}", end="", flush=True)
        self._open = True
