"""Buckets in memory: objects, listings, uploads in one piece and in parts."""

import hashlib
import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from urllib.parse import quote

import crcmod

from tests.harness.oss_wire import Answer, OssFault, Request, element, xml

_HTTP_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass
class StoredBytes:
    """An object or a part."""

    data: bytes
    etag: str
    crc64: int
    number: int = 0
    """Larger is later."""
    told: dict[str, str] = field(default_factory=dict)
    """Its x-oss-meta-* headers."""


@dataclass
class Upload:
    """An upload in parts that is under way."""

    bucket: str
    key: str
    told: dict[str, str]
    parts: dict[int, StoredBytes] = field(default_factory=dict)


class Objects:
    """What is stored. Every method answers one kind of request or raises OssFault."""

    def __init__(self, buckets: list[str]) -> None:
        self.buckets: dict[str, dict[str, StoredBytes]] = {name: {} for name in buckets}
        self.uploads: dict[str, Upload] = {}
        self._crc64 = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, xorOut=2**64 - 1, rev=True)  # CRC-64/XZ
        self._number = itertools.count(1)
        self._order = itertools.count(1)

    def store(
        self, bucket: str, key: str, data: bytes, etag: str | None = None, told: dict[str, str] | None = None
    ) -> StoredBytes:
        """Put an object there."""
        stored = self._stored(data, etag)
        stored.number, stored.told = next(self._order), told or {}
        self.buckets[bucket][key] = stored
        return stored

    def answer(self, request: Request) -> Answer:
        """Answer a request that is signed and let in."""
        if request.bucket not in self.buckets:
            raise OssFault(404, "NoSuchBucket", "The specified bucket does not exist")
        if not request.key:
            return self._unfinished(request) if "uploads" in request.query else self._list(request)
        if request.method in ("GET", "HEAD"):
            return self._get(request)
        if request.method == "PUT":
            return self._put_part(request) if "uploadId" in request.query else self._put(request)
        if request.method == "POST" and "uploads" in request.query:
            return self._begin(request)
        if request.method == "POST" and "uploadId" in request.query:
            return self._complete(request)
        if request.method == "DELETE":
            return self._delete(request)
        raise OssFault(405, "MethodNotAllowed", f"{request.method} is not spoken here")

    def _stored(self, data: bytes, etag: str | None = None) -> StoredBytes:
        etag = etag or hashlib.md5(data).hexdigest().upper()
        return StoredBytes(data=data, etag=f'"{etag}"', crc64=self._crc64(data))

    def _get(self, request: Request) -> Answer:
        stored = self.buckets[request.bucket].get(request.key)
        if stored is None:
            raise OssFault(404, "NoSuchKey", "The specified key does not exist", {"Key": request.key})
        if request.headers.get("if-match", stored.etag).strip('"') != stored.etag.strip('"'):
            raise OssFault(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        headers = {
            "ETag": stored.etag,
            "Last-Modified": _HTTP_DATE,
            "Accept-Ranges": "bytes",
            "x-oss-object-type": "Normal",
            "x-oss-hash-crc64ecma": str(stored.crc64),
            **stored.told,
        }
        size = len(stored.data)
        if request.method == "HEAD":
            return Answer(200, headers, length=size)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(200, headers, stored.data)
        first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        if first >= size or last < first:
            if request.headers.get("x-oss-range-behavior") == "standard":
                raise OssFault(416, "InvalidRange", "The requested range cannot be satisfied")
            return Answer(200, headers, stored.data)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Answer(206, headers, memoryview(stored.data)[first : last + 1])

    def _put(self, request: Request) -> Answer:
        self._check_overwrite(request)
        stored = self.store(request.bucket, request.key, request.body, told=_told(request))
        return _written(stored)

    def _check_overwrite(self, request: Request) -> None:
        forbidden = request.headers.get("x-oss-forbid-overwrite", "").lower() == "true"
        if forbidden and request.key in self.buckets[request.bucket]:
            raise OssFault(
                409, "FileAlreadyExists", "The object you specified already exists and can not be overwritten"
            )

    def _delete(self, request: Request) -> Answer:
        if "uploadId" in request.query:
            self._upload(request)
            del self.uploads[request.query["uploadId"]]
        else:
            self.buckets[request.bucket].pop(request.key, None)
        return Answer(204)

    def _begin(self, request: Request) -> Answer:
        upload_id = f"{next(self._number):032X}"
        self.uploads[upload_id] = Upload(request.bucket, request.key, _told(request))
        parts = [element("Bucket", request.bucket), element("Key", request.key), element("UploadId", upload_id)]
        return Answer(200, {}, xml("InitiateMultipartUploadResult", *parts))

    def _upload(self, request: Request) -> Upload:
        upload = self.uploads.get(request.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (request.bucket, request.key):
            raise OssFault(404, "NoSuchUpload", "The specified upload does not exist")
        return upload

    def _unfinished(self, request: Request) -> Answer:
        """Uploads in parts that are under way, one page."""
        begins = request.query.get("prefix", "")
        shown = [
            f"<Upload>{element('Key', quote(each.key))}{element('UploadId', name)}"
            f"{element('Initiated', _date(1))}</Upload>"
            for name, each in self.uploads.items()
            if each.bucket == request.bucket and each.key.startswith(begins)
        ]
        head = [element("EncodingType", "url"), element("IsTruncated", "false"), element("NextKeyMarker", "")]
        last = element("NextUploadIdMarker", "")
        return Answer(200, {"Content-Type": "application/xml"}, xml("ListMultipartUploadsResult", *head, last, *shown))

    def _put_part(self, request: Request) -> Answer:
        number = int(request.query["partNumber"])
        if not 1 <= number <= 10000:
            raise OssFault(400, "InvalidArgument", "Part number must be from 1 to 10000")
        part = self._stored(request.body)
        self._upload(request).parts[number] = part
        return _written(part)

    def _complete(self, request: Request) -> Answer:
        upload = self._upload(request)
        self._check_overwrite(request)
        try:
            listed = [
                (int(part.findtext("PartNumber", "")), part.findtext("ETag", ""))
                for part in ElementTree.fromstring(request.body).iter("Part")
            ]
        except (ElementTree.ParseError, ValueError):
            raise OssFault(400, "MalformedXML", "The list of parts cannot be read") from None
        numbers = [number for number, _ in listed]
        if not numbers or numbers != sorted(set(numbers)):
            raise OssFault(400, "InvalidPartOrder", "The parts are not in ascending order")
        for number, etag in listed:
            if number not in upload.parts or upload.parts[number].etag.strip('"') != etag.strip('"'):
                raise OssFault(400, "InvalidPart", f"Part {number} is not there or has another etag")
        data = b"".join(upload.parts[number].data for number in numbers)
        etag = hashlib.md5("".join(etag for _, etag in listed).encode()).hexdigest().upper() + f"-{len(listed)}"
        stored = self.store(request.bucket, request.key, data, etag, upload.told)
        del self.uploads[request.query["uploadId"]]
        answer = _written(stored)
        answer.body = xml("CompleteMultipartUploadResult", element("Key", request.key), element("ETag", stored.etag))
        return answer

    def _list(self, request: Request) -> Answer:
        """One page. Versions 1 and 2 differ in how the next page is named."""
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        second = query.get("list-type") == "2"
        after = query.get("continuation-token" if second else "marker", "") or query.get("start-after", "")
        most = int(query.get("max-keys") or 100)
        code = quote if query.get("encoding-type") == "url" else str
        parts: list[str] = []
        folders: list[str] = []
        last, more = "", False
        for key in sorted(self.buckets[request.bucket]):
            folder = _folder(key, prefix, delimiter)
            name = folder or key
            if not key.startswith(prefix) or name <= after or name == last:
                continue
            if len(parts) + len(folders) == most:
                more = True
                break
            last = name
            if folder:
                folders.append(f"<CommonPrefixes>{element('Prefix', code(folder))}</CommonPrefixes>")
            else:
                parts.append(self._listed(request.bucket, key, code(key)))
        following = element("NextContinuationToken" if second else "NextMarker", code(last)) if more else ""
        encoding = element("EncodingType", "url") if code is quote else ""
        head = [element("Name", request.bucket), encoding, element("IsTruncated", str(more).lower()), following]
        return Answer(200, {"Content-Type": "application/xml"}, xml("ListBucketResult", *head, *parts, *folders))

    def _listed(self, bucket: str, key: str, name: str) -> str:
        stored = self.buckets[bucket][key]
        fields = {
            "Key": name,
            "LastModified": _date(stored.number),
            "ETag": stored.etag,
            "Type": "Normal",
            "Size": len(stored.data),
        }
        inner = "".join(element(field_name, value) for field_name, value in fields.items())
        return f"<Contents>{inner}{element('StorageClass', 'Standard')}</Contents>"


def _folder(key: str, prefix: str, delimiter: str) -> str:
    """The common prefix that a key hides behind, or nothing."""
    if not delimiter:
        return ""
    head, found, _ = key[len(prefix) :].partition(delimiter)
    return prefix + head + delimiter if found else ""


def _told(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.startswith("x-oss-meta-")}


def _date(number: int) -> str:
    return f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.000Z"


def _written(stored: StoredBytes) -> Answer:
    return Answer(200, {"ETag": stored.etag, "x-oss-hash-crc64ecma": str(stored.crc64)})
