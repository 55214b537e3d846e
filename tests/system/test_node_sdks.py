"""The SDKs for Node, unmodified: `openai` and the Vercel AI SDK. What they must see stands in tests/node."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.embedded import EmbeddedServer
from tests.support.servers import skip_or_fail
from tests.support.stage import served
from tests.support.system import Api, Worker
from tests.support.upstream import Call, Script, answer, paced, refuse, silence
from tests.system.test_openai_sdk import LIMITED, REJECTION, TEXT, raw, rich

pytestmark = pytest.mark.timeout(300)

PACKAGE = Path(__file__).parents[1] / "node"
SCRIPTS: dict[str, Script] = {
    "rich": rich(),
    "plain": answer("Hello", " there"),
    "400": refuse(400, {"error": REJECTION}),
    "401": refuse(401, {}),
    "404": refuse(404, {}),
    "429": LIMITED,
    "500": refuse(500, {}),
    "malformed": raw(b"data: {no json\n\n"),
    "empty": raw(b": hello\n\n"),
    "hang": silence(),
    "cut": raw(*TEXT),
    "endless": paced(10_000, 50),
}


async def by_the_last_message(call: Call) -> None:
    """The script that the request names."""
    said: Any = call.json["messages"][-1]["content"]
    await SCRIPTS[said if isinstance(said, str) else said[0]["text"]](call)


@pytest.fixture(scope="module")
def node() -> str:
    """The path of Node; skipped, where that may be, without it or its packages."""
    found = shutil.which("node")
    installed = (PACKAGE / "node_modules" / ".package-lock.json").exists()
    if found is None or not installed:
        reason = "no Node" if found is None else "no SDKs: npm ci --ignore-scripts --prefix tests/node"
        skip_or_fail(reason)
    return found


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Api]]:
    """Two nodes, a worker, and an upstream that does what it is asked to."""
    with served(by_the_last_message) as upstream, EmbeddedServer() as redis:
        models = tmp_path_factory.mktemp("models") / "models.toml"
        address = f'source = "openai"\nbase_url = "{upstream.base_url}"\n'
        models.write_text(
            f"[models.m]\n{address}[models.hasty]\n{address}first_token_timeout_s = 1.0\n"
            '[models.simulated]\nsource = "simulated"\n'
        )
        settings: dict[str, Any] = {"models_file": models, "abandon_after_s": 2}
        with (
            Api(redis.url, **settings) as api,
            Api(redis.url, **settings) as other,
            Worker(redis.url, **settings),
        ):
            yield api, other


@pytest.mark.parametrize("name", ["openai", "ai"])
def test_sdk(node: str, nodes: tuple[Api, Api], name: str) -> None:
    """Every test of the file passes."""
    urls = [f"http://127.0.0.1:{api.port}" for api in nodes]
    done = subprocess.run(
        [node, "--test", "--test-reporter=spec", f"{name}.test.js"],
        cwd=PACKAGE,
        env={**os.environ, "RELAY_URL": urls[0], "RELAY_OTHER": urls[1], "AI_SDK_LOG_WARNINGS": "false"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    passed = [line for line in done.stdout.splitlines() if line.startswith("✔")]
    assert len(passed) >= 10, done.stdout
