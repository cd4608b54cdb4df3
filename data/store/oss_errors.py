"""What went wrong in a request to OSS, by what cures it.

The text of oss2's own errors is never passed on: the service quotes in them what it would have signed, and with it the
security token.
"""

import re
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

import oss2
import requests
import urllib3
from oss2.exceptions import ClientError, RequestError

# 503 of docs "HTTP status code 503", and the 429 that users see.
THROTTLED = {
    "DownloadTrafficRateLimitExceeded",
    "UploadTrafficRateLimitExceeded",
    "TotalQpsLimitExceeded",
    "MetaOperationQpsLimitExceeded",
    "QpsLimitExceeded",
    "ActiveRequestLimitExceeded",
    "CpuLimitExceeded",
    "ServiceUnavailable",
}
REFUSED_KEYS = {"InvalidAccessKeyId", "SecurityTokenExpired", "InvalidSecurityToken"}
_CURES = {
    "SignatureDoesNotMatch": "check the secret of the key, and that oss.region is the bucket's",
    "AccessDenied": "allow this key to list the bucket and to read its objects; for uploads, to write and delete them",
    "InvalidObjectState": "the object is archived; restore it first",
    "NoSuchBucket": "correct the bucket in the source's path, or oss.region and oss.endpoint",
    "InvalidBucketName": "correct the bucket in the source's path",
}
_SKEW = (
    "set the clock of this host (NTP): requests are refused when it is 15 minutes off; it differs from the service's"
)


class BrokenBody(Exception):
    """An answer that is not what was asked for, or ends early."""

    def __init__(self, text: str, request_id: str) -> None:
        super().__init__(text)
        self.request_id = request_id


class ChangedObject(Exception):
    """The object is another one than that asked for."""

    def __init__(self, found: str, request_id: str) -> None:
        super().__init__(found)
        self.found = found
        self.request_id = request_id


# What a request can fail with and still mean that the network or the service is at fault.
REQUEST_ERRORS = (
    oss2.exceptions.OssError,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    ParseError,
    ConnectionError,
    TimeoutError,
    BrokenBody,
    ChangedObject,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFault:
    """One failed request."""

    kind: str
    """throttled, transient, keys, missing, exists, changed, past the end or fatal."""
    text: str
    request_id: str = "none"
    code: str = ""
    cure: str = ""


def classify(error: Exception) -> RequestFault:
    """What kind of fault an error of REQUEST_ERRORS is."""
    if isinstance(error, ChangedObject):
        return RequestFault(kind="changed", text=str(error), request_id=error.request_id)
    if isinstance(error, BrokenBody):
        return RequestFault(kind="transient", text=str(error), request_id=error.request_id)
    if isinstance(error, RequestError):
        return _of_transport(error.exception)
    if isinstance(error, ClientError):  # of the client itself, such as a bucket's name that cannot be
        return RequestFault(kind="fatal", text=_plain(error.body))
    if isinstance(error, oss2.exceptions.OssError):
        return _of_service(error)
    return _of_transport(error)


def _of_service(error: oss2.exceptions.OssError) -> RequestFault:
    code = _plain(error.code or "")
    shown = f"status {error.status} {code}".rstrip()
    cure = _CURES.get(code, "")
    if code in THROTTLED or error.status == 429:
        kind = "throttled"
    elif code in REFUSED_KEYS:
        kind = "keys"
    elif code == "RequestTimeTooSkewed":
        there, here = (_plain(text or "") for text in (error.details.get("ServerTime"), error.headers.get("Date")))
        kind, cure = "fatal", f"{_SKEW}, {there or here or 'which it did not tell'}"
    elif error.status == 404:
        kind = "fatal" if code == "NoSuchBucket" else "missing"
    elif code == "FileAlreadyExists":
        kind = "exists"
    elif error.status == 412:
        kind = "changed"
    elif error.status == 416:
        kind = "past the end"
    elif error.status >= 500 or error.status in (408, 409):
        kind = "transient"
    else:
        kind = "fatal"
    return RequestFault(kind=kind, text=shown, request_id=error.request_id or "none", code=code, cure=cure)


def _of_transport(error: Exception) -> RequestFault:
    text = f"{type(error).__name__}: {_plain(str(error))}"
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return RequestFault(kind="fatal", text=text, cure="check oss.endpoint and the host's certificates")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return RequestFault(kind="fatal", text=text, cure="correct oss.endpoint")
    return RequestFault(kind="transient", text=text)


def _plain(text: str) -> str:
    """Short and printable: it may come from anybody."""
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:200]
