"""One range of one object, over as many requests as it takes."""

import re
import time

import oss2
from oss2.http import Response

from data.store.config import OssConfig
from data.store.oss_errors import REQUEST_ERRORS, BrokenBody, ChangedObject
from data.store.oss_requests import Call

_PIECE = 1 << 18


class Download:
    """Bytes `offset` to `offset + length` of an object; what has come is kept when a request breaks."""

    def __init__(self, key: str, offset: int, length: int, etag: str | None, config: OssConfig) -> None:
        self.etag = etag
        self._key = key
        self._offset = offset
        self._length = length
        self._config = config
        self._size: int | None = None  # of the object, once known
        self._received = bytearray()

    def go_on(self, call: Call) -> bytes:
        """Ask for what is missing, and read it. Raises BrokenBody, ChangedObject or what oss2 does."""
        first = self._offset + len(self._received)
        if self._received:
            call.meter.add(resumed=1)
        # Without the second header OSS answers a range past the end with the whole object.
        headers = {"x-oss-range-behavior": "standard"}
        if self.etag is not None:
            headers["If-Match"] = f'"{self.etag}"'
        try:
            result = call.bucket.get_object(self._key, (first, self._offset + self._length - 1), headers)
        except (ValueError, IndexError) as error:  # oss2 reads Content-Range without care
            raise BrokenBody(f"Content-Range cannot be read ({type(error).__name__})", "unknown") from None
        except oss2.exceptions.ServerError as error:
            if error.status == 416 and not self._received:
                return b""
            if error.status == 412:
                raise ChangedObject(self._etag_now(call), error.request_id) from None
            raise
        call.answered(result.headers, result.request_id)
        try:
            due = self._check(result, first)
            self._read(call, result.resp, due, result.request_id)
            return bytes(self._received)
        except BaseException:
            result.close()  # the rest of this body is of no use, and neither is its connection
            raise

    def _etag_now(self, call: Call) -> str:
        try:
            return f"etag {call.bucket.head_object(self._key).etag}"
        except REQUEST_ERRORS:
            return "another"

    def _check(self, result: oss2.models.GetObjectResult, first: int) -> int:
        """How many bytes are to come, if the answer is to what was asked."""
        said = result.headers.get("Content-Range", "")
        if result.status != 206:
            raise BrokenBody(f"status {result.status} where a range is due: it was not heeded", result.request_id)
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said)
        if match is None:
            raise BrokenBody(f"Content-Range is {said[:80]!r}", result.request_id)
        begin, last, size = map(int, match.groups())
        due = min(self._offset + self._length, size) - first
        if self._size not in (None, size):
            raise ChangedObject(f"{size} bytes long, was {self._size}", result.request_id)
        if (begin, last) != (first, first + due - 1) or result.content_length != due:
            raise BrokenBody(
                f"asked for bytes {first}-{first + due - 1} of {size}, got {said} and Content-Length "
                f"{result.content_length}",
                result.request_id,
            )
        if self.etag is not None and result.etag != self.etag:
            raise ChangedObject(f"etag {result.etag}", result.request_id)
        self.etag, self._size = result.etag, size
        return due

    def _read(self, call: Call, response: Response, due: int, request_id: str) -> None:
        """Read as bytes come, which shows a body that drips: the timeout of a socket begins anew with each byte."""
        raw = response.response.raw
        started = time.monotonic()
        got = 0
        while got < due:
            piece = raw.read1(min(_PIECE, due - got), decode_content=False)
            if not piece:
                raise BrokenBody(f"the body ended after {got} of {due} bytes", request_id)
            self._received += piece
            got += len(piece)
            call.meter.add(bytes=len(piece))
            late = time.monotonic() - started - self._config.read_seconds
            if got < min(late * self._config.min_bytes_per_second, due):
                raise BrokenBody(f"{got} of {due} bytes in {late + self._config.read_seconds:.1f} s", request_id)
            call.check_deadline()
