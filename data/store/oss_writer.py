"""Objects written under `oss://bucket/prefix`: whole or in parts, each compared by CRC64 with what the service has."""

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from oss2.models import PartInfo
from oss2.utils import Crc64

from data.errors import MissingObject, StoreError
from data.store.config import OssConfig
from data.store.oss import OssStore
from data.store.oss_errors import BrokenBody
from data.store.oss_requests import Call

LEAST_PART, MOST_PARTS = 100 * 1024, 10_000
"""What OSS allows: bytes of a part that is not the last, and parts of an object."""
_REQUESTS_PER_SECOND = 100.0
_FORBID = {"x-oss-forbid-overwrite": "true"}
_CRC32C, _CRC64 = "x-oss-meta-crc32c", "x-oss-meta-crc64"


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenObject:
    """What the service tells of an object that was written here."""

    size: int
    crc32c: str | None
    """Of what was to be written; None where nothing says so, or the object holds something else."""


class OssWriter(OssStore):
    """A prefix of a bucket that is written to, with a budget apart from that of all who read. Safe for threads."""

    def __init__(self, address: str, config: OssConfig, bytes_per_second: float) -> None:
        # Answers to parts of all sizes come after all times: latency says nothing of the service here.
        limiter = replace(
            config.limiter,
            bytes_per_second=bytes_per_second,
            requests_per_second=_REQUESTS_PER_SECOND,
            start=1.0,
            slow_seconds=math.inf,
        )
        super().__init__(address, replace(config, limiter=limiter), budget=" uploads")

    def describe(self, name: str) -> WrittenObject | None:
        """What is there under a name; None if nothing is."""
        try:
            head = self._requests.run(self._url(name), 0, lambda call: call.bucket.head_object(self.prefix + name))
        except MissingObject:
            return None
        told, crc64 = head.headers.get(_CRC32C), head.headers.get(_CRC64)
        sound = crc64 is None or crc64 == str(head.server_crc)
        return WrittenObject(size=head.content_length or 0, crc32c=told if sound else None)

    def put(self, name: str, data: bytes, crc32c: str = "", is_new: bool = False) -> None:
        """Write an object in one request. Raises StoreError; with `is_new` ExistingObject if there is one, which may
        be that of a try before whose answer was lost."""
        due = _crc64(data)
        headers = {_CRC32C: crc32c, _CRC64: str(due)} if crc32c else {}
        headers |= _FORBID if is_new else {}

        def attempt(call: Call) -> Any:
            result = call.bucket.put_object(self.prefix + name, _body(data), headers=headers)
            if is_new and result.crc != due:  # it is this try's own, and would be in the way of the next
                call.bucket.delete_object(self.prefix + name)
            return _compared(result, due)

        self._requests.run(self._url(name), len(data), attempt)

    def put_parts(self, name: str, parts: Iterable[bytes], crc32c: str, vouch: Callable[[], None]) -> None:
        """Write an object part by part; a part that fails is sent again, not the object.

        Args:
            parts: each of LEAST_PART or more, but for the last.
            vouch: called before the parts become an object; what it raises leaves none.

        Raises StoreError.
        """
        key, what = self.prefix + name, self._url(name)
        upload = self._requests.run(
            what, 0, lambda call: call.bucket.init_multipart_upload(key, headers={_CRC32C: crc32c})
        ).upload_id
        try:
            sent = [self._part(name, upload, number, data) for number, data in enumerate(parts, start=1)]
            vouch()
            whole = Crc64()
            due = 0
            for part in sent:
                due = whole.combine(due, part.part_crc, part.size)
            self._complete(name, upload, sent, due)
        except BaseException:
            with contextlib.suppress(OSError):  # parts that are not put together are paid for until they are dropped
                self._requests.run(what, 0, partial(_abort, key, upload))
            raise

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there any more are no fault."""
        for name in names:
            self._requests.run(self._url(name), 0, partial(self._delete, name))

    def drop_parts(self, below: str) -> None:
        """Drop parts that were never put together, of objects whose names begin with `below`; they are paid for."""
        for key, upload in list(self._unfinished(self.prefix + below)):
            with contextlib.suppress(MissingObject):
                self._requests.run(self._url(below), 0, partial(_abort, key, upload))

    def _part(self, name: str, upload: str, number: int, data: bytes) -> PartInfo:
        due = _crc64(data)

        def attempt(call: Call) -> Any:
            result = call.bucket.upload_part(self.prefix + name, upload, number, _body(data))
            return _compared(result, due)

        result = self._requests.run(f"{self._url(name)} part {number}", len(data), attempt)
        return PartInfo(number, result.etag, size=len(data), part_crc=due)

    def _complete(self, name: str, upload: str, sent: list[PartInfo], due: int) -> None:
        key = self.prefix + name
        try:
            result = self._requests.run(
                self._url(name), 0, lambda call: call.bucket.complete_multipart_upload(key, upload, sent)
            )
            found = result.crc
        except MissingObject:  # a try before this one did it, and its answer was lost
            found = self._requests.run(self._url(name), 0, lambda call: call.bucket.head_object(key)).server_crc
        if found != due:
            self.delete([name])
            raise StoreError(f"{self._url(name)}: the parts were put together to CRC64 {found}, it should be {due}")

    def _delete(self, name: str, call: Call) -> Any:
        return call.bucket.delete_object(self.prefix + name)

    def _unfinished(self, below: str) -> Iterator[tuple[str, str]]:
        key = upload = ""
        while True:
            page = self._requests.run(self._url(""), 0, partial(_uploads, below, key, upload))
            yield from ((each.key, each.upload_id) for each in page.upload_list)
            if not page.is_truncated:
                return
            key, upload = page.next_key_marker, page.next_upload_id_marker


def _uploads(below: str, key: str, upload: str, call: Call) -> Any:
    return call.bucket.list_multipart_uploads(prefix=below, key_marker=key, upload_id_marker=upload)


def _abort(key: str, upload: str, call: Call) -> Any:
    return call.bucket.abort_multipart_upload(key, upload)


def _body(data: bytes) -> "io.BytesIO | bytes":
    """A file, because the time limit of a socket is for each piece of it, and bytes would be one piece.

    Not where it is empty: requests takes the length of an empty file for unknown, and would send chunks.
    """
    return io.BytesIO(data) if data else data


def _crc64(data: bytes) -> int:
    summed = Crc64()
    summed.update(data)
    return int(summed.crc)


def _compared(result: Any, due: int) -> Any:
    """The answer to bytes that were sent, if the service has just these. Raises BrokenBody, so that they go again."""
    if result.crc != due:
        raise BrokenBody(f"CRC64 {result.crc} came to be where {due} was sent", result.request_id)
    return result
