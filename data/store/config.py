"""What a recipe says about object storage. No field holds a secret: keys come from the environment or a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

KEY_VARIABLES = ("OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET", "OSS_SESSION_TOKEN")
"""Of the environment, that hold a key: its name, what requests are signed with, and the token of a temporary one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimiterConfig:
    """What all processes of a node together may ask of a bucket. The budgets are ceilings; rates follow the answers."""

    requests_per_second: float = 1600.0
    """Four fifths of the 2,000 that OSS allows for keys in sequence, as shards are; divide by the nodes of the run."""
    bytes_per_second: float = 1e9
    """Four fifths of the 10 Gbit/s an account has in mainland China; divide by the nodes of the run."""
    start: float = 0.125
    """Share of the budget to begin with; until something is refused, a rate that is too low doubles each second."""
    floor: float = 0.01
    """Share of the budget below which no rate falls."""
    increase: float = 0.01
    """Share of the budget that a rate gains in a second in which it held somebody back."""
    decrease: float = 0.85
    """What is left of a rate after a rejection, a told delay, or rising latency; at most every half second."""
    slow_seconds: float = 0.05
    """Latency counts as rising if median and 95th percentile double and the median is above this."""
    retry_share: float = 0.1
    """Retries there may be for each request, beside one a second."""
    folder: str | None = None
    """Where processes meet; None: a folder of this user in the system's folder for temporary files."""

    def __post_init__(self) -> None:
        if not (self.requests_per_second > 0 and self.bytes_per_second > 0):
            raise ValueError(
                f"oss.limiter: requests_per_second and bytes_per_second must be > 0, got {self.requests_per_second} "
                f"and {self.bytes_per_second}"
            )
        if not self.floor <= self.start <= 1:
            raise ValueError(f"oss.limiter.start is {self.start}, must be from floor ({self.floor}) to 1")
        for name in ("floor", "increase", "decrease", "retry_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"oss.limiter.{name} is {getattr(self, name)}, must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OssConfig:
    """How `oss://bucket/prefix` is reached."""

    region: str = "cn-hangzhou"
    """Part of every signature, so it must be that of the bucket."""
    internal: bool = False
    """Use the endpoint that is only seen from inside the region, where traffic costs nothing."""
    endpoint: str | None = None
    """`https://host` in place of the region's own; for private clouds and tests."""
    credentials: str = "env"
    """`env`, `file:PATH`, `ecs:ROLE` or `uri:URL`; see docs/oss.md."""
    connections: int = 8
    """At most so many at a time in one process."""
    connect_seconds: float = 3.0
    """To reach the endpoint at all."""
    read_seconds: float = 15.0
    """Silence after which an answer is given up."""
    deadline_seconds: float = 300.0
    """For one read with all its retries; waiting for the limiter does not count."""
    min_bytes_per_second: float = 16384.0
    """A body that is slower once `read_seconds` have passed is broken off and resumed."""
    first_backoff_seconds: float = 0.2
    """The first pause before a retry is at most this; each one after it at most twice as long."""
    longest_backoff_seconds: float = 20.0
    """No pause is longer."""
    limiter: LimiterConfig = field(default_factory=LimiterConfig)

    def __post_init__(self) -> None:
        for name in ("connections", "connect_seconds", "read_seconds", "deadline_seconds", "min_bytes_per_second"):
            if not getattr(self, name) > 0:
                raise ValueError(f"oss.{name} is {getattr(self, name)}, must be > 0")
        if not 0 < self.first_backoff_seconds <= self.longest_backoff_seconds:
            raise ValueError(
                f"oss: need 0 < first_backoff_seconds <= longest_backoff_seconds, got {self.first_backoff_seconds} "
                f"and {self.longest_backoff_seconds}"
            )
        if not self.region or not all(part.isalnum() for part in self.region.split("-")):
            raise ValueError(f"oss.region is {self.region!r}; write it as cn-hangzhou, without the oss- before it")
        self._check_credentials()
        if self.endpoint is not None:
            split = urlsplit(self.endpoint)
            if split.scheme not in ("http", "https") or not split.hostname or split.username or split.path.strip("/"):
                # Not shown: a user in it may be a key.
                raise ValueError("oss.endpoint must be http(s)://host[:port], without a path or a user")

    def _check_credentials(self) -> None:
        kind, _, rest = self.credentials.partition(":")
        split = urlsplit(rest)
        good = (kind == "env" and not rest) or (kind in ("file", "ecs") and bool(rest))
        # A query or a user in an address is as good as a key, and recipes are logged.
        if kind == "uri":
            good = split.scheme in ("http", "https") and bool(split.hostname) and not (split.query or split.username)
        if not good:
            # Not shown: what stands here by mistake may be a key.
            raise ValueError("oss.credentials must be env, file:PATH, ecs:ROLE or uri:URL (without user and query)")

    @property
    def address(self) -> str:
        """The endpoint's URL."""
        if self.endpoint is not None:
            return self.endpoint
        return f"https://oss-{self.region}{'-internal' if self.internal else ''}.aliyuncs.com"


def oss_from_dict(told: Mapping[str, Any]) -> OssConfig:
    """Inverse of `dataclasses.asdict`. Raises TypeError, ValueError, KeyError."""
    return OssConfig(**{**told, "limiter": LimiterConfig(**told["limiter"])})
