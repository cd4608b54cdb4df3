"""One checkpoint to object storage, in a process of its own: `python -m train.checkpoint.upload JOB`.

A process, because checksums and TLS would keep Python's lock from training. JOB is a `Job` as JSON and holds no keys;
what became of it is the last line of stdout, a `Sent` as JSON. Files go first, then files.json, then COMMIT, and
neither of these before all files are there and compared: a folder in the bucket counts as a local one does.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from data.child import keep_stdout, leave_with_parent
from data.errors import MissingObject
from data.store.config import oss_from_dict
from train.checkpoint import commits, identity
from train.checkpoint.bucket import found_in, whole
from train.checkpoint.commits import COMMIT, FILES, LEFT_BEHIND, FileEntry
from train.checkpoint.retention import Policy

if TYPE_CHECKING:
    from data.store.oss_writer import OssWriter

PART = 8 << 20
"""Bytes of a request, at most: what is sent again if one fails, and held in memory by each of THREADS."""
THREADS = 4
_MOST_PARTS = 10_000
_LEAST_PART = 100 * 1024


class Damaged(ValueError):
    """The checkpoint itself is not what it says: to try again is of no use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is uploaded, where to, and what stays there."""

    folder: str
    """Of a sealed checkpoint."""
    address: str
    """oss://bucket/prefix."""
    oss: dict[str, Any]
    """OssConfig, as asdict has it."""
    bytes_per_second: float
    keep: int
    keep_every: int | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What became of one try."""

    files: int = 0
    """That were sent, not those that were there."""
    nbytes: int = 0
    """Of those files."""
    seconds: float = 0.0
    fault: str | None = None
    """Why it does not count; None: it does."""
    is_over: bool = True
    """Whether another try is of no use."""
    left: str | None = None
    """Why older ones could not be deleted."""


def run(job: Job) -> Sent:
    """One try."""
    from data.store.oss_writer import OssWriter  # half a second

    started = time.monotonic()
    counted = Counted()
    fault = left = None
    is_over = True
    try:
        writer = OssWriter(job.address, oss_from_dict(job.oss), job.bytes_per_second)
        path = Path(job.folder)
        identity.claim(writer, job.address, path.parent.parent)
        upload(path, writer, part_bytes(job.bytes_per_second), counted)
        try:
            leave_behind(writer, path.name)
            left = "; ".join(prune(writer, path.name, Policy(last=job.keep, every=job.keep_every))) or None
        except (OSError, ValueError) as error:
            left = str(error)
    except (Damaged, identity.Taken) as error:
        fault = str(error)
    except (OSError, ValueError) as error:
        fault, is_over = str(error), False
    seconds = time.monotonic() - started
    return Sent(files=counted.files, nbytes=counted.nbytes, seconds=seconds, fault=fault, is_over=is_over, left=left)


@dataclass(slots=True)
class Counted:
    """What was sent so far."""

    files: int = 0
    nbytes: int = 0


def part_bytes(bytes_per_second: float) -> int:
    """Bytes of a request: no more than a second's, so that a small budget is spent evenly."""
    return max(_LEAST_PART, min(PART, int(bytes_per_second)))


def upload(path: Path, writer: "OssWriter", part: int, counted: Counted) -> None:
    """Send what is not there yet of a sealed checkpoint, and what it refers to; COMMIT last.

    Raises Damaged if the folder is not what it says, StoreError, OSError.
    """
    try:
        files = commits.listed_files(path)
        texts = {name: (path / name).read_bytes() for name in (FILES, COMMIT)}
        commits.parse_files(texts[FILES], texts[COMMIT])
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.name} cannot be uploaded: {error}") from error
    sizes = {each.name: each.size for each in writer.tree()}

    def send(name: str) -> None:
        entry = files[name]
        where = f"{entry.folder}/{name}"
        if sizes.get(where) == entry.digest.size:
            there = writer.describe(where)
            if there is not None and there.crc32c == entry.digest.crc32c:
                return
        send_file(commits.place_of(path, name, entry), where, entry, writer, part)
        counted.files += 1
        counted.nbytes += entry.digest.size

    with ThreadPoolExecutor(THREADS) as threads:
        tasks = [threads.submit(send, name) for name in sorted(files)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for name in (FILES, COMMIT):
        writer.put(f"{path.name}/{name}", texts[name], _crc32c(texts[name]))


def send_file(file: Path, where: str, entry: FileEntry, writer: "OssWriter", part: int) -> None:
    """Send one file, unless the disk gives other bytes than were written. Raises Damaged, StoreError, OSError."""
    summed = google_crc32c.Checksum()
    size = 0

    def pieces(most: int) -> Iterator[bytes]:
        nonlocal size
        with file.open("rb", buffering=0) as opened:
            while piece := _read(opened.read, most):
                summed.update(piece)
                size += len(piece)
                yield piece

    def vouch() -> None:
        crc32c = summed.hexdigest().decode("ascii")
        if (size, crc32c) != (entry.digest.size, entry.digest.crc32c):
            raise Damaged(
                f"{where} has {size} bytes and crc32c {crc32c} on disk, was written with {entry.digest.size} and "
                f"{entry.digest.crc32c}; it was not uploaded"
            )

    most = max(part, -(-entry.digest.size // _MOST_PARTS))
    try:
        if entry.digest.size > most:
            writer.put_parts(where, pieces(most), entry.digest.crc32c, vouch)
        else:
            data = b"".join(pieces(most))
            vouch()
            writer.put(where, data, entry.digest.crc32c)
    except MissingObject:
        raise
    except FileNotFoundError as error:
        raise Damaged(f"{where} is gone: {error}") from error


def _read(read: Callable[[int], bytes], most: int) -> bytes:
    """So many bytes, unless the file ends: a file system may give less at a time."""
    found = bytearray()
    while len(found) < most and (piece := read(most - len(found))):
        found += piece
    return bytes(found)


def leave_behind(writer: "OssWriter", newest: str) -> None:
    """Say of sealed ones that `newest`, which the run has come to now, is not after, that it has gone on from an
    earlier one; a bucket that is copied has other times, so those cannot say it. Raises StoreError."""
    found = {each.name: each for each in found_in(writer.tree("step_"))}
    for name, each in found.items():
        if name != newest and each.sealed and not each.left and each.step >= found[newest].step:
            writer.put(f"{name}/{LEFT_BEHIND}", b"")
    if found[newest].left:
        writer.delete([f"{newest}/{LEFT_BEHIND}"])


def prune(writer: "OssWriter", newest: str, policy: Policy) -> list[str]:
    """Delete what the policy does not keep now that `newest` is there, COMMIT first. Raises StoreError.

    Returns what is wrong with sealed ones that do not say which files they have. They count for nothing and stay, and
    so does every file of a step that is not after theirs: once files.json is sent again they may be whole.
    """
    tree = writer.tree()
    remote = found_in(tree)
    step = {each.name: each.step for each in remote}
    files: dict[str, dict[str, FileEntry]] = {}
    wrong: dict[str, str] = {}
    for name in (each.name for each in remote if each.sealed):
        try:
            files[name] = commits.parse_files(*(whole(writer, f"{name}/{file}") for file in (FILES, COMMIT)))
        except (ValueError, MissingObject) as error:
            wrong[name] = f"{name}: {error}; upload it again, or delete it"
    if newest in wrong:
        return list(wrong.values())
    gone = policy.superseded([(name, step[name]) for name in files], newest)
    seals = {f"{name}/{COMMIT}" for name in gone}
    writer.delete(sorted(seals))
    kept = files.keys() - set(gone)
    needed = {f"{name}/{file}" for name in kept for file in (FILES, COMMIT, LEFT_BEHIND)}
    needed |= {f"{entry.folder}/{file}" for name in kept for file, entry in files[name].items()}
    known = max((step[name] for name in wrong), default=-1)
    free = {name for name in step if known < step[name] <= step[newest]}
    objects = (each.name for each in tree if each.name.partition("/")[0] in free)
    writer.delete(name for name in objects if name not in needed | seals)
    writer.drop_parts("step_")
    return list(wrong.values())


def _crc32c(data: bytes) -> str:
    return google_crc32c.Checksum(data).hexdigest().decode("ascii")


def main() -> None:
    """Do one job, and say what became of it."""
    leave_with_parent()
    replies = keep_stdout()
    sent = run(Job(**json.loads(sys.argv[1])))
    replies.write(json.dumps(asdict(sent)).encode() + b"\n")


if __name__ == "__main__":
    main()
