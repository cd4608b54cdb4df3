"""Text that is tokens already: megatron-core's `.bin`/`.idx` files, memory-mapped, as a source of the plan.

Read and written by numpy alone, because megatron-core would bring torch into every data worker; tests hold both against
megatron-core's `indexed_dataset`, which defines the format. A document is a sample, or several if no row takes it.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import IGNORE
from data.encoding.positions import mrope_positions
from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError, MismatchError
from data.types import EncodedSample, Int64, MediaSize

MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")  # version, dtype code, sequences, document boundaries
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_LARGEST_UINT16 = 65500  # vocabulary from which megatron-core takes int32
_PROGRESS = 1000
_BLOCKS, _BLOCK = 64, 1 << 20  # of a .bin, read and compared at the start of a run
_ABOUT = "tokens.json"  # what we know of the pair; PREFIX.json may well be somebody's data
LONGEST_DOCUMENT = 2**31  # tokens; none has more


def is_text(path: str) -> bool:
    """Whether a source's path names token files: `PREFIX` with PREFIX.idx and PREFIX.bin beside each other."""
    path = path.removeprefix("file://")
    return "://" not in path and not Path(path).is_dir() and Path(f"{path}.idx").is_file()


class TextIndex:
    """The documents of one pair of files, with the columns that a plan reads (data/index/file.py)."""

    def __init__(self, prefix: str | Path, max_tokens: int) -> None:
        """`max_tokens`: longer documents are samples of at most so many tokens each, one after the other.

        Raises MismatchError if the files are no such pair.
        """
        self.prefix = Path(str(prefix).removeprefix("file://"))
        head = _beside(self.prefix, "idx").read_bytes()
        dtype, lengths, pointers, documents = _parse_idx(head, f"{prefix}.idx")
        path = _beside(self.prefix, "bin")
        width = np.dtype(dtype).itemsize
        size, due = path.stat().st_size if path.is_file() else -1, int(lengths.sum(dtype=np.int64)) * width
        if size < due:
            raise MismatchError(f"{path} has {size} bytes where {prefix}.idx wants {due}; copy both again")
        self._tokens = np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)
        first, last = documents[:-1], documents[1:]
        totals = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        sizes, starts = totals[last] - totals[first], np.append(pointers, 0)[first] // width
        pieces = -(-sizes // max_tokens)
        self._document = np.repeat(np.arange(len(sizes)), pieces)
        place = np.arange(len(self._document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self._start = np.repeat(starts, pieces) + place * max_tokens
        counts = np.minimum(max_tokens, np.repeat(sizes, pieces) - place * max_tokens)
        none = np.empty(0, dtype=np.uint32)
        self.columns: dict[str, NDArray[Any]] = {
            "num_text_tokens": counts,
            "num_targets": counts - 1,
            "media_end": np.zeros(len(counts), dtype=np.uint64),
            **{f"media_{name}": none for name in ("kind", "height", "width", "frames", "fps")},
        }
        self.meta = _read_meta(self.prefix)
        self._idx_digest = _digest(head)
        written = self.meta.get("bin", "") if self.meta else ""
        self.digest = _digest(head + f"{size} {max_tokens}{written}".encode())

    def __len__(self) -> int:
        return len(self._start)

    def media_size(self, row: int) -> MediaSize:
        raise AssertionError("token files have no pictures")

    def media_sizes(self, i: int) -> list[MediaSize]:
        """None."""
        return []

    def where(self, i: int) -> str:
        """Document and token range of sample i."""
        start, count = int(self._start[i]), int(self.columns["num_text_tokens"][i])
        return f"{self.prefix.name}.bin, document {int(self._document[i])}, tokens [{start}:{start + count}]"

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse other tokens, where the files say which they are; raises MismatchError.

        Reads 64 MiB at most: of a larger .bin 64 blocks that are spread over it, so that another file is noticed and a
        flipped bit perhaps not; `compare` reads all. Files of another origin say nothing.
        """
        if self.meta is None:
            return
        if self.meta.get("tokenizer") != tokenizer.digest:
            raise MismatchError(
                f"{self.prefix} was made with the tokenizer of digest {self.meta.get('tokenizer')}, this one has "
                f"{tokenizer.digest}; make it again with `triptych index FILE.jsonl`"
            )
        found = {"idx": self._idx_digest, "blocks": _digest_blocks(_beside(self.prefix, "bin"))}
        for name, file in (("idx", "idx"), ("blocks", "bin")):
            if self.meta.get(name, found[name]) != found[name]:
                raise MismatchError(
                    f"{self.prefix}.{file} changed since it was made: its digest is {found[name]}, was "
                    f"{self.meta[name]}; copy it again, or make it again with `triptych index FILE.jsonl`"
                )

    def compare(self) -> list[str]:
        """How the .bin differs from what was written, every byte of it; also what cannot be compared."""
        expected = self.meta.get("bin") if self.meta else None
        if expected is None:
            return [f"{self.prefix}.{_ABOUT} has no digest of {self.prefix}.bin, so nothing says whether it changed"]
        with open(_beside(self.prefix, "bin"), "rb") as file:
            found = hashlib.file_digest(file, _blake2b).hexdigest()
        return [] if found == expected else [f"{self.prefix}.bin has digest {found}, was written with {expected}"]

    def encode(self, i: int, vocab_size: int) -> EncodedSample:
        """Every token but the first is learnt. Raises MismatchError for an id that the tokenizer does not have."""
        start, count = int(self._start[i]), int(self.columns["num_text_tokens"][i])
        tokens = self._tokens[start : start + count].astype(np.int64)
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
            raise MismatchError(
                f"{self.where(i)}: token ids from {tokens.min()} to {tokens.max()}, the tokenizer has {vocab_size}; "
                "was the file made with another one?"
            )
        return EncodedSample(
            tokens=tokens,
            targets=np.append(tokens[1:], IGNORE),
            positions=mrope_positions(count, []),
            grids=np.empty((0, 3), dtype=np.int64),
            visual_index=np.empty(0, dtype=np.int64),
            media=(),
        )


def build_text(
    source: str | Path,
    prefix: str | Path,
    tokenizer: Tokenizer,
    progress: Callable[[int, float], None] = lambda *_: None,
) -> list[str]:
    """Write PREFIX.bin, .idx and .tokens.json from lines of `{"text": ...}`; returns what was left out and why.

    Each document ends with <|endoftext|>. Files appear under their names only when complete; older ones of that name
    stay until then. Raises FormatError if no line can be used, ValueError if there are files that we have not made.

    Args:
        progress: told of (documents, share of the source that is read) now and then.
    """
    prefix = Path(prefix)
    _check_free(prefix)
    refused: list[str] = []
    dtype = "<u2" if tokenizer.vocab_size < _LARGEST_UINT16 else "<i4"
    parts = {kind: prefix.with_name(f".{prefix.name}.{kind}.{os.getpid()}.part") for kind in ("bin", "idx", _ABOUT)}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    size = max(Path(source).stat().st_size, 1)
    lengths: list[int] = []
    digest = _blake2b()
    try:
        with open(source, "rb") as lines, open(parts["bin"], "wb") as out:
            for text in _texts(lines, refused):
                ids = np.array([*tokenizer.encode(text), tokenizer.ids.end_of_text], dtype=dtype).tobytes()
                out.write(ids)
                digest.update(ids)
                lengths.append(len(ids) // np.dtype(dtype).itemsize)
                if len(lengths) % _PROGRESS == 0:
                    progress(len(lengths), lines.tell() / size)
        if not lengths:
            raise FormatError(f"{source} has no line that can be used; the first: {refused[:3]}")
        progress(len(lengths), 1.0)
        idx = _idx_bytes(np.array(lengths, dtype=np.int64), dtype)
        parts["idx"].write_bytes(idx)
        meta = {"tokenizer": tokenizer.digest, "source": Path(source).name, "bin": digest.hexdigest()}
        meta |= {"blocks": _digest_blocks(parts["bin"]), "idx": _digest(idx)}
        parts[_ABOUT].write_text(json.dumps(meta))
        _publish(parts, prefix)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return refused


def _check_free(prefix: Path) -> None:
    if prefix.is_dir():
        raise ValueError(f"{prefix} is a folder, whose shards a source of that path means; name another --output")
    foreign = [str(path) for path in (_beside(prefix, kind) for kind in ("bin", "idx")) if path.exists()]
    if foreign and not _beside(prefix, _ABOUT).is_file():
        raise ValueError(f"{' and '.join(foreign)} exist and were not made here; name another --output")


def _publish(parts: Mapping[str, Path], prefix: Path) -> None:
    """Give the files their names. The .idx makes them a source: the old one goes first, the new one comes last."""
    idx = _beside(prefix, "idx")
    idx.unlink(missing_ok=True)
    try:
        for kind in ("bin", _ABOUT, "idx"):
            parts[kind].replace(_beside(prefix, kind))
    except BaseException:  # Ctrl-C among them
        if not idx.exists():
            for kind in ("bin", _ABOUT):
                _beside(prefix, kind).unlink(missing_ok=True)
        raise


def _beside(prefix: Path, kind: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{kind}")


def _blake2b() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _digest_blocks(path: Path) -> str:
    """Of the first bytes, the last, and others evenly between them; of all if there are not more."""
    size = path.stat().st_size
    starts = np.linspace(0, max(size - _BLOCK, 0), _BLOCKS).astype(np.int64).tolist()
    if size <= _BLOCKS * _BLOCK:
        starts = list(range(0, size, _BLOCK))
    digest = _blake2b()
    with open(path, "rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _texts(lines: Iterable[bytes], refused: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            text = json.loads(line)["text"]
            if not isinstance(text, str) or not text:
                raise ValueError("`text` is no text, or empty")
        except (ValueError, KeyError, TypeError) as error:
            refused.append(f"line {number}: {type(error).__name__}: {error}")
        else:
            yield text


def _parse_idx(data: bytes, name: str) -> tuple[str, NDArray[np.int32], Int64, Int64]:
    """(dtype, tokens of each sequence, first byte of each, document boundaries in sequences)."""
    start = len(MAGIC) + _HEAD.size
    if not data.startswith(MAGIC) or len(data) < start:
        raise MismatchError(f"{name} is no index of megatron-core's token files")
    version, code, sequences, boundaries = _HEAD.unpack_from(data, len(MAGIC))
    if version != 1 or code not in _DTYPES or len(data) != start + 12 * sequences + 8 * boundaries or not boundaries:
        raise MismatchError(
            f"{name} has version {version}, dtype code {code}, {sequences} sequences, {boundaries} boundaries and "
            f"{len(data)} bytes, which do not fit together; copy it again"
        )
    lengths = np.frombuffer(data, "<i4", sequences, start)
    pointers = np.frombuffer(data, "<i8", sequences, start + 4 * sequences)
    documents = np.frombuffer(data, "<i8", boundaries, start + 12 * sequences)
    ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(_DTYPES[code]).itemsize
    sound = (lengths >= 0).all() and (pointers == np.append(0, ends)[:-1]).all() and (np.diff(documents) >= 0).all()
    if not sound or documents[0] != 0 or documents[-1] != sequences:
        raise MismatchError(f"{name} is damaged: lengths, pointers or document boundaries make no sense; copy it again")
    return _DTYPES[code], lengths, pointers.astype(np.int64), documents.astype(np.int64)


def _idx_bytes(lengths: Int64, dtype: str) -> bytes:
    code = next(code for code, name in _DTYPES.items() if name == dtype)
    ends = np.cumsum(lengths) * np.dtype(dtype).itemsize
    pointers = np.concatenate([[0], ends[:-1]])
    head = MAGIC + _HEAD.pack(1, code, len(lengths), len(lengths) + 1)
    documents = np.arange(len(lengths) + 1)
    return head + lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + documents.astype("<i8").tobytes()


def _read_meta(prefix: Path) -> dict[str, Any] | None:
    """What `build_text` left beside the files; None for files of another origin."""
    path = _beside(prefix, _ABOUT)
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
