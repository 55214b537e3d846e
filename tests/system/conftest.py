"""The stage that system tests play on, what its processes said, and the real model behind some of them."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cli.llm_server import model_file
from relay.embedded import free_port
from relay.errors import Unavailable
from tests.support.servers import skip_or_fail
from tests.support.stage import Stage, stage
from tests.support.system import logs_if_failed
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the processes of a module's fixtures said, when a test has failed."""
    with logs_if_failed(request):
        yield


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage with nothing on it but Redis; the processes' logs are shown when the test fails."""
    with stage() as scene, logs_if_failed(request):
        yield scene


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The base URL of a running model; skipped where it is not installed."""
    try:
        model_file()
    except Unavailable as missing:
        skip_or_fail(missing.message)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-model-") as folder:
        said = Path(folder) / "said"
        with said.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "relay.cli.llm_server", "--port", str(port)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
            )  # fmt: skip
        try:
            wait_until(lambda: b"ready http" in said.read_bytes(), "the model serves", timeout_s=60)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()
            server.wait()
