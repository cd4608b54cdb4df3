"""Verifies what an OSS client signed, written from the published rules and not from the client: V4 and V1."""

import base64
import hashlib
import hmac
import time
from calendar import timegm
from dataclasses import dataclass, field
from email.utils import parsedate
from urllib.parse import quote

from tests.harness.oss_wire import OssFault, Request

SKEW_SECONDS = 15 * 60
REGION = "cn-hangzhou"
# Parameters that V1 signs with the resource; others, such as prefix, it leaves out.
_V1_SIGNED = {"objectMeta", "uploads", "uploadId", "partNumber", "continuation-token", "security-token"}


@dataclass
class Key:
    """An access key; a temporary one has a token and an end."""

    secret: str
    token: str = ""
    expires: float | None = None
    """Seconds since 1970."""


@dataclass
class Keys:
    """The keys that a server knows."""

    known: dict[str, Key] = field(default_factory=dict)
    clock_offset: float = 0.0
    """Seconds by which the server's clock is ahead."""
    _signing: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def check(self, request: Request) -> None:
        """Raise OssFault unless the request is signed by a key that holds."""
        given = request.headers.get("authorization", "")
        if given.startswith("OSS4-HMAC-SHA256 "):
            access, due = self._version4(request, given)
        elif given.startswith("OSS "):
            access, due = self._version1(request, given)
        else:
            raise OssFault(403, "AccessDenied", "You have no right to access this object: it is not signed")
        if not hmac.compare_digest(*due):
            # The real service shows here what it would have signed, security token and all.
            shown = {"StringToSign": request.headers.get("x-oss-security-token", ""), "OSSAccessKeyId": access}
            raise OssFault(403, "SignatureDoesNotMatch", "The request signature does not match", shown)
        key = self.known[access]
        if key.token != request.headers.get("x-oss-security-token", ""):
            raise OssFault(403, "InvalidSecurityToken", "The security token is not that of this key")
        if key.expires is not None and key.expires < time.time():
            raise OssFault(403, "SecurityTokenExpired", "The security token you provided has expired")

    def _key(self, access: str) -> Key:
        if access not in self.known:
            raise OssFault(403, "InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist")
        return self.known[access]

    def _check_clock(self, sent: float) -> None:
        now = time.time() + self.clock_offset
        if abs(now - sent) > SKEW_SECONDS:
            shown = {"ServerTime": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now))}
            raise OssFault(403, "RequestTimeTooSkewed", "The difference of the clocks is too large", shown)

    def _version4(self, request: Request, given: str) -> tuple[str, tuple[str, str]]:
        fields = dict(part.strip().split("=", 1) for part in given.removeprefix("OSS4-HMAC-SHA256 ").split(","))
        access, _, scope = fields["Credential"].partition("/")
        date, region, product, _ = scope.split("/")
        when = request.headers["x-oss-date"]
        self._check_clock(timegm(time.strptime(when, "%Y%m%dT%H%M%SZ")))
        if (region, product) != (REGION, "oss") or not when.startswith(date):
            raise OssFault(403, "SignatureDoesNotMatch", "The scope of the signature is wrong")
        extra = [name for name in fields.get("AdditionalHeaders", "").split(";") if name]
        signed = sorted(
            (name, value)
            for name, value in request.headers.items()
            if name.startswith("x-oss-") or name in ("content-type", "content-md5") or name in extra
        )
        query = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in request.query.items())
        canonical = "\n".join(
            [
                request.method,
                quote(f"/{request.bucket}/{request.key}", safe="/-_.~"),
                "&".join(f"{name}={value}" if value else name for name, value in query),
                "".join(f"{name}:{value}\n" for name, value in signed),
                ";".join(extra),
                request.headers["x-oss-content-sha256"],
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"OSS4-HMAC-SHA256\n{when}\n{scope}\n{digest}"
        due = hmac.new(self._signing_key(access, scope), text.encode(), hashlib.sha256).hexdigest()
        return access, (due, fields["Signature"])

    def _signing_key(self, access: str, scope: str) -> bytes:
        secret = self._key(access).secret
        if (secret, scope) not in self._signing:
            key = ("aliyun_v4" + secret).encode()
            for part in scope.split("/"):
                key = hmac.new(key, part.encode(), hashlib.sha256).digest()
            self._signing[secret, scope] = key
        return self._signing[secret, scope]

    def _version1(self, request: Request, given: str) -> tuple[str, tuple[str, str]]:
        access, _, signature = given.removeprefix("OSS ").partition(":")
        parsed = parsedate(request.headers.get("date", ""))
        if parsed is None:
            raise OssFault(403, "AccessDenied", "OSS authentication requires a valid Date")
        self._check_clock(timegm(parsed))
        own = "".join(
            f"{name}:{value}\n" for name, value in sorted(request.headers.items()) if name.startswith("x-oss-")
        )
        signed = sorted((name, value) for name, value in request.query.items() if name in _V1_SIGNED)
        query = "&".join(f"{name}={value}" if value else name for name, value in signed)
        resource = f"/{request.bucket}/{request.key}" + (f"?{query}" if query else "")
        lines = [request.method, *(request.headers.get(name, "") for name in ("content-md5", "content-type", "date"))]
        text = "\n".join([*lines, own + resource])
        due = hmac.new(self._key(access).secret.encode(), text.encode(), hashlib.sha1).digest()
        return access, (base64.b64encode(due).decode(), signature)
