"""What several tests on a real server need beside its URL."""

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.support.servers import admin
from workers import writer


@pytest.fixture
def redis(embedded_url: str) -> Iterator[Redis]:
    """The server, for what a test does behind the back of the code under test."""
    with admin(embedded_url) as client:
        yield client


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer tries again every few milliseconds, so that a test need not wait for it."""
    monkeypatch.setattr(writer, "_RETRY_FIRST_S", 0.005)
    monkeypatch.setattr(writer, "_RETRY_LAST_S", 0.01)
