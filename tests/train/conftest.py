"""The loopback service for tests of uploads: one process for all of them, empty and without faults at each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.store.config import OssConfig
from tests.harness.oss_server import ACCESS, SECRET
from tests.harness.oss_service import OssService
from tests.train.uploaded import oss_of


@pytest.fixture(scope="session")
def started() -> Iterator[OssService]:
    service = OssService()
    yield service
    service.stop()


@pytest.fixture
def service(started: OssService, monkeypatch: pytest.MonkeyPatch) -> OssService:
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    started.plan()
    started.throttle()
    started.keys({ACCESS: {"secret": SECRET}})
    for name in started.names():
        started.delete(name)
    started.forget()
    return started


@pytest.fixture
def oss(service: OssService, tmp_path: Path) -> OssConfig:
    return oss_of(service, tmp_path)
