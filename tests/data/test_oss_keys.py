"""Keys for object storage: where they come from, when they are renewed, and that nobody sees them."""

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import StoreError
from data.store.credentials import open_keys
from data.store.oss import OssStore
from tests.harness.oss_cases import expiring_tokens, refused_tokens
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService, make_store, oss_service


@pytest.fixture(scope="module")
def service() -> Iterator[OssService]:
    with oss_service() as (service, _):
        service.put("set/a.tar", b"0123456789")
        yield service


@pytest.fixture
def store_of(service: OssService, tmp_path: Path) -> Iterator:
    yield lambda credentials: make_store(service, str(tmp_path / "node"), credentials=credentials)
    service.keys({ACCESS: {"secret": SECRET}})


def read(store: OssStore) -> bytes:
    return store.read_range("a.tar", 2, 3)


def test_keys_of_the_environment_may_be_temporary(
    service: OssService, store_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(store_of("env")) == b"234"
    monkeypatch.setenv("OSS_SESSION_TOKEN", "a token")
    with pytest.raises(StoreError, match=r"refuses the keys from the environment .*InvalidSecurityToken, request"):
        read(store_of("env"))
    service.keys({ACCESS: {"secret": SECRET, "token": "a token", "expires": time.time() + 60}})
    assert read(store_of("env")) == b"234"
    service.keys({ACCESS: {"secret": SECRET, "token": "a token", "expires": time.time() - 1}})
    with pytest.raises(StoreError, match="SecurityTokenExpired"):
        read(store_of("env"))
    monkeypatch.delenv("OSS_ACCESS_KEY_SECRET")
    with pytest.raises(StoreError, match="set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET"):
        read(store_of("env"))


def test_a_file_is_read_again_when_its_keys_no_longer_hold(service: OssService, store_of, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"AccessKeyId": ACCESS, "AccessKeySecret": SECRET}))
    store = store_of(f"file:{path}")
    assert read(store) == b"234"
    service.keys({"STS.2": {"secret": "other", "token": "t2"}})
    with pytest.raises(StoreError, match=r"refuses the keys from file .*keys\.json .*there are no newer ones"):
        read(store)
    path.write_text("[default]\naccess_key_id = STS.2\naccess_key_secret = other\nsecurity_token = t2\n")
    assert read(store) == b"234"
    assert store.stats().renewed == 1


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"AccessKeyId": "LTAI-hidden"}', "hidden = [", "[a]\nb = %(hidden)s"]
)
def test_a_file_without_keys_says_so_without_a_word_of_it(store_of, tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(StoreError, match="has no access_key_id and access_key_secret") as caught:
        read(store_of(f"file:{tmp_path / 'keys'}"))
    assert "hidden" not in str(caught.value)
    with pytest.raises(StoreError, match=r"cannot read .*absent: FileNotFoundError"):
        read(store_of(f"file:{tmp_path / 'absent'}"))


def test_temporary_keys_are_kept_for_the_node_where_only_this_user_reads(
    service: OssService, store_of, tmp_path: Path
) -> None:
    service.forget()
    stores = [store_of(f"uri:{service.role_url}") for _ in range(3)]
    assert [read(store) for store in stores] == [b"234"] * 3
    assert service.counts["role keys given"] == 1
    (kept,) = (path for path in (tmp_path / "node").glob("keys-*") if path.suffix == "")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert "token of" in kept.read_text() and "token of" not in repr(stores[0]._requests._keys.get_credentials())
    kept.write_text("[1")
    assert read(store_of(f"uri:{service.role_url}")) == b"234"
    assert service.counts["role keys given"] == 2


def test_a_service_that_gives_no_keys_says_so(service: OssService, tmp_path: Path) -> None:
    keys = open_keys(f"uri:{service.endpoint}/shards/nothing", str(tmp_path / "node"))
    with pytest.raises(StoreError, match=r"shards/nothing gives none \(ClientError"):
        keys.get_credentials()


def test_readers_whose_keys_end_at_once_fetch_new_ones_once() -> None:
    found = refused_tokens(4)
    assert found == {"lost": 0, "repeated": 0, "fetches beyond one": 0}


def test_keys_are_renewed_before_they_end() -> None:
    found = expiring_tokens(processes=3, life=3.0, passes=2)
    assert found.pop("requests with keys that had ended") <= 3
    assert found == {"lost": 0, "repeated": 0, "errors": 0, "fetches beyond one a life": 0}


def test_a_role_is_asked_for_at_the_metadata_service(tmp_path: Path) -> None:
    provider = open_keys("ecs:reader", str(tmp_path / "node"))
    assert provider.where == "http://100.100.100.200/latest/meta-data/ram/security-credentials/reader"
    assert not list(Path(tmp_path / "node").iterdir()) and os.environ.get("OSS_SESSION_TOKEN") is None
