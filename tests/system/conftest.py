"""The stage that system tests play on."""

from collections.abc import Iterator

import pytest

from tests.support.stage import Stage, stage
from tests.support.system import logs_if_failed


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage with nothing on it but Redis; the processes' logs are shown when the test fails."""
    with stage() as scene, logs_if_failed(request):
        yield scene
