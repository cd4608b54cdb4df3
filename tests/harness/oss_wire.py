"""Requests and answers of the OSS protocol as bytes."""

import asyncio
import base64
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

REASONS = {200: "OK", 204: "No Content", 206: "Partial Content"}
MOST_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """One request, read whole."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class OssFault(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, shown: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.shown = shown or {}


@dataclass
class Answer:
    """Status, headers and body to send."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    length: int | None = None
    """Content-Length, where it is not that of the body: after HEAD, and in lies."""

    def head(self, request_id: str) -> bytes:
        """Status line and headers."""
        length = len(self.body) if self.length is None else self.length
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Error')}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, f"x-oss-request-id: {request_id}", "Server: AliyunOSS", "", ""]).encode()


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; None at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = int(headers.get("content-length", 0))
    if headers.get("expect", "").lower() == "100-continue":
        raise ValueError("100-continue is not spoken here")
    body = await reader.readexactly(length) if length else b""
    split = urlsplit(target)
    bucket, _, key = split.path.lstrip("/").partition("/")
    query = dict(parse_qsl(split.query, keep_blank_values=True))
    return Request(method=method, bucket=bucket, key=unquote(key), query=query, headers=headers, body=body)


def error_answer(fault: OssFault, request_id: str, head_only: bool) -> Answer:
    """The XML that tells a fault; for HEAD, which has no body, in the header that stands in for it."""
    fields = {"Code": fault.code, "Message": fault.message, "RequestId": request_id, "HostId": "127.0.0.1"}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in (fields | fault.shown).items())
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'.encode()
    if head_only:
        return Answer(fault.status, {"x-oss-err": base64.b64encode(text).decode()}, length=0)
    return Answer(fault.status, {"Content-Type": "application/xml"}, text)


def xml(root: str, *parts: str) -> bytes:
    """A document of a root and its parts."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{"".join(parts)}</{root}>'.encode()


def element(name: str, value: object) -> str:
    """One element with text in it."""
    return f"<{name}>{escape(str(value))}</{name}>"
