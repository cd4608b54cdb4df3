"""Keys for object storage: from the environment, a file, or a service that gives out temporary ones.

Nothing here shows a secret: not in repr, not in an error, not in a log. Temporary keys are fetched once a node, under a
lock, and kept for the other processes in a file that only this user can read; nobody else needs to ask the service.
"""

import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oss2
from oss2.credentials import EcsRamRoleCredentialsFetcher

from data.errors import StoreError
from data.store.config import KEY_VARIABLES
from data.store.limiter import shared_folder

METADATA = "http://100.100.100.200/latest/meta-data/ram/security-credentials/"
FRESH_SHARE = 0.15  # of its life, in which a key is renewed before it ends
_LOCK_SECONDS = 60.0
_SPELLINGS = {
    "id": ("access_key_id", "AccessKeyId"),
    "secret": ("access_key_secret", "AccessKeySecret"),
    "token": ("security_token", "SecurityToken", "session_token"),
}


class OssKeys:
    """A key as oss2 asks for it."""

    def __init__(
        self, access: str, secret: str, token: str = "", expires: float | None = None, life: float = 0
    ) -> None:
        self._access = access
        self._secret = secret
        self._token = token
        self.expires = expires
        self.life = life

    def __repr__(self) -> str:
        return f"OssKeys({self.shown})"

    @property
    def shown(self) -> str:
        """Enough of the key's name to tell it from another one; the name is no secret."""
        return f"{self._access[:8]}..." if len(self._access) > 8 else self._access

    @property
    def is_fresh(self) -> bool:
        """Whether there is time before it ends."""
        return self.expires is None or time.time() < self.expires - FRESH_SHARE * self.life

    def is_same(self, other: "OssKeys") -> bool:
        """Whether both are one key and token."""
        return (self._access, self._secret, self._token) == (other._access, other._secret, other._token)

    def get_access_key_id(self) -> str:
        """Name of the key."""
        return self._access

    def get_access_key_secret(self) -> str:
        """What requests are signed with."""
        return self._secret

    def get_security_token(self) -> str:
        """Of temporary keys; else empty."""
        return self._token

    def to_json(self) -> str:
        """All of it, secrets included, for the file that processes share."""
        return json.dumps([self._access, self._secret, self._token, self.expires, self.life])


class KeyProvider(oss2.CredentialsProvider):
    """Gives oss2 the keys that hold now. `load(stale)` reads or fetches them; `stale` are keys that no longer hold."""

    def __init__(self, where: str, load: Callable[[OssKeys | None], OssKeys]) -> None:
        self.where = where
        self._load = load
        self._keys: OssKeys | None = None

    def __repr__(self) -> str:
        return f"KeyProvider({self.where})"

    def get_credentials(self) -> OssKeys:
        """The keys, renewed if they are about to end. Raises StoreError if there are none."""
        keys = self._keys
        if keys is None or not keys.is_fresh:
            keys = self._keys = self._load(keys)
        return keys

    def renew(self, refused: OssKeys) -> bool:
        """Look for other keys than those the service refused; whether there are."""
        if self._keys is None or self._keys.is_same(refused):  # else another thread was here before
            self._keys = self._load(refused)
        return not self._keys.is_same(refused)


def open_keys(credentials: str, folder: str | None) -> KeyProvider:
    """The provider that a recipe's `oss.credentials` names; `folder` is where processes of a node meet."""
    kind, _, rest = credentials.partition(":")
    if kind == "env":
        return KeyProvider("the environment", _from_environment)
    if kind == "file":
        return KeyProvider(f"file {rest}", lambda stale: _from_file(Path(rest)))
    url = rest if kind == "uri" else METADATA + rest
    return KeyProvider(url, _OncePerNode(url, shared_folder(folder)))


def _from_environment(stale: OssKeys | None) -> OssKeys:
    access, secret, token = (os.environ.get(name, "") for name in KEY_VARIABLES)
    if not access or not secret:
        raise StoreError(
            "no keys for object storage: set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET (and OSS_SESSION_TOKEN for "
            "temporary ones) in the environment of every process, or point oss.credentials at a file"
        )
    return OssKeys(access, secret, token)


def _from_file(path: Path) -> OssKeys:
    """Keys of a JSON or ini file. What cannot be read is told without a word of its content."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise StoreError(f"keys for object storage: cannot read {path}: {type(error).__name__}") from None
    fields: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        loaded = json.loads(text)
        fields = loaded if isinstance(loaded, dict) else {}
    if not fields:
        parser = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(configparser.Error):
            parser.read_string(text)
            for section in parser.sections():
                fields |= dict(parser[section])
    found = {
        name: next((str(fields[spelling]) for spelling in spellings if fields.get(spelling)), "")
        for name, spellings in _SPELLINGS.items()
    }
    if not found["id"] or not found["secret"]:
        raise StoreError(
            f"keys for object storage: {path} has no access_key_id and access_key_secret; write them as JSON or as "
            "ini, with security_token for temporary ones, and replace the file in one move when they change"
        )
    return OssKeys(found["id"], found["secret"], found["token"])


class _OncePerNode:
    """Fetches temporary keys from a URL, and finds those that another process fetched."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        name = hashlib.blake2b(url.encode(), digest_size=12).hexdigest()
        self._path = folder / f"keys-{name}"
        self._lock = folder / f"keys-{name}.lock"

    def __call__(self, stale: OssKeys | None) -> OssKeys:
        found = self._kept(stale)
        if found is not None:
            return found
        with self._one_at_a_time():
            return self._kept(stale) or self._fetch()

    def _kept(self, stale: OssKeys | None) -> OssKeys | None:
        try:
            keys = OssKeys(*json.loads(self._path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return keys if keys.is_fresh and (stale is None or not keys.is_same(stale)) else None

    def _fetch(self) -> OssKeys:
        try:
            given = EcsRamRoleCredentialsFetcher(self._url).fetch(retry_times=3, timeout=10)
        except (oss2.exceptions.OssError, AttributeError, TypeError, ValueError) as error:
            # oss2's message may quote the answer.
            raise StoreError(
                f"keys for object storage: {self._url} gives none ({type(error).__name__}, 3 tries of 10 s); check the "
                "role and that this host may ask for it"
            ) from None
        keys = OssKeys(
            given.access_key_id, given.access_key_secret, given.security_token, float(given.expiration), given.duration
        )
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(keys.to_json())
        part.replace(self._path)
        return keys

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Any:
        """Hold the node's lock; without it after a minute, so that a stopped process does not stop the others."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = time.monotonic() + _LOCK_SECONDS
            while time.monotonic() < end:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)
