"""An index of a source in object storage is that of the same source in a folder, but for the etags it keeps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.encoding.tokenizer import load_tokenizer
from data.errors import MismatchError, ShardFault
from data.index.build import build_index, open_index
from data.index.check import compare_with_shards
from data.store.config import LimiterConfig, OssConfig
from tests.harness.index_sources import make_source
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService

SOURCE = "oss://shards/mine"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[OssService]:
    started = OssService()
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    started.keys({ACCESS: {"secret": SECRET}})
    yield started
    started.stop()


def test_a_source_in_object_storage_is_indexed_checked_and_read(service: OssService, tmp_path: Path) -> None:
    make_source(tmp_path, shards=3, samples_per_shard=5)
    for shard in (tmp_path / "source").iterdir():
        service.put(f"mine/{shard.name}", shard.read_bytes())
    limiter = LimiterConfig(folder=str(tmp_path / "limits"), requests_per_second=5000)
    oss = OssConfig(endpoint=service.endpoint, limiter=limiter)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    local = build_index(tmp_path / "source", tokenizer)
    index = build_index(SOURCE, tokenizer, output=tmp_path / "index", readers=2, oss=oss)
    assert index.meta["columns"] == local.meta["columns"]
    assert [(s.name, s.size, s.digest) for s in index.shards] == [(s.name, s.size, s.digest) for s in local.shards]
    assert all(shard.etag for shard in index.shards)
    assert index.digest == local.digest, "a run may go on from object storage where it began in a folder"
    index.check(tokenizer)
    assert compare_with_shards(index, 2) == [] and index.read_raw(7) == local.read_raw(7)
    service.put("mine/s-000001.tar", (tmp_path / "source" / "s-000002.tar").read_bytes())
    index = open_index(SOURCE, tmp_path / "index", oss)
    with pytest.raises(MismatchError, match=r"s-000001\.tar has etag"):
        index.check(tokenizer)
    with pytest.raises(ShardFault, match=r"s-000001\.tar"):
        index.read_raw(7)
    assert any("s-000001.tar" in fault for fault in compare_with_shards(index, 2))
