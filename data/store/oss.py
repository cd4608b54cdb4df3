"""Objects under `oss://bucket/prefix`, read by ranges through oss2, which itself retries nothing and checks nothing."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import oss2

from data.errors import StoreError
from data.store.config import OssConfig
from data.store.oss_download import Download
from data.store.oss_requests import Call, OssRequests
from data.store.stats import StoreStats
from data.store.store import StoredObject

_PAGE = 1000


class OssStore:
    """A prefix of a bucket. Safe for threads, after fork, and to be pickled to another process.

    Raises ValueError for an address that cannot be, StoreError if there are no keys.
    """

    def __init__(self, address: str, config: OssConfig, budget: str = "") -> None:
        match = re.fullmatch(r"oss://([a-z0-9][a-z0-9-]{1,61}[a-z0-9])(?:/(.*))?", address)
        if match is None:
            raise ValueError(f"{address!r} is no address of a folder in OSS; write it as oss://bucket/prefix")
        self.bucket, folder = match[1], (match[2] or "").strip("/")
        self.prefix = f"{folder}/" if folder else ""
        self.config = config
        self._requests = OssRequests(self.bucket, config, budget)

    def __reduce__(self) -> Any:
        return OssStore, (f"oss://{self.bucket}/{self.prefix}", self.config)

    def __repr__(self) -> str:
        return f"OssStore(oss://{self.bucket}/{self.prefix})"

    def list(self, suffix: str) -> list[StoredObject]:
        """Objects right under the prefix, sorted by name; those behind a further `/` are not entered."""
        found = (self._named(each) for each in self._listed("", "/"))
        return sorted((each for each in found if each.name.endswith(suffix) and each.name), key=lambda each: each.name)

    def tree(self, below: str = "") -> tuple[StoredObject, ...]:
        """All objects whose names begin with `below`, however many `/` follow, with the time of each."""
        return tuple(replace(self._named(each), modified=each.last_modified) for each in self._listed(below, ""))

    def size(self, name: str) -> int:
        """Bytes of an object; raises MissingObject, which is a FileNotFoundError."""
        what = self._url(name)
        head = self._requests.run(what, 0, lambda call: call.bucket.head_object(self.prefix + name))
        if head.content_length is None:
            raise StoreError(f"{what}: the service does not tell its size; request {head.request_id}")
        return head.content_length

    def read_range(self, name: str, offset: int, length: int, etag: str | None = None) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the object.

        Raises ShardFault if the object has another etag than the one given, StoreError if it cannot be read; both name
        object, range and request.
        """
        if offset < 0 or length < 0:
            raise ValueError(f"{self._url(name)}: no range of {length} bytes from {offset}")
        if length == 0:
            return b""
        download = Download(self.prefix + name, offset, length, etag, self.config)
        what = f"{self._url(name)}[{offset}:{offset + length}]"
        return self._requests.run(what, length, download.go_on, etag=lambda: download.etag)

    def where(self, name: str) -> str:
        """An object's address and this thread's last request, for messages."""
        return f"{self._url(name)} (request {self._requests.last_request_id})"

    def stats(self) -> StoreStats:
        """What this process counted."""
        return self._requests.here.meter.stats()

    def _url(self, name: str) -> str:
        return f"oss://{self.bucket}/{self.prefix}{name}"

    def _named(self, each: Any) -> StoredObject:
        return StoredObject(name=each.key.removeprefix(self.prefix), size=each.size, etag=each.etag)

    def _listed(self, below: str, delimiter: str) -> Iterator[Any]:
        token = ""
        what = f"the list of {self._url(below)}"
        while True:
            page = self._requests.run(what, 0, partial(self._page, self.prefix + below, delimiter, token))
            yield from page.object_list
            if not page.is_truncated:
                return
            if page.next_continuation_token == token:
                raise StoreError(f"{what} goes in a circle at token {token!r}; request {page.request_id}")
            token = page.next_continuation_token

    def _page(self, prefix: str, delimiter: str, token: str, call: Call) -> oss2.models.ListObjectsV2Result:
        return call.bucket.list_objects_v2(prefix, delimiter=delimiter, continuation_token=token, max_keys=_PAGE)
