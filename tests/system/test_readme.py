"""The README's snippets do what it says."""

import ast
import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import simulation
from relay.embedded import EmbeddedServer
from tests.support.browser import Tab, chromium
from tests.support.system import Api, Worker, logs_if_failed
from tests.support.wait import wait_until

README = Path(__file__).parents[2] / "README.md"


def snippet(name: str) -> str:
    """The code block behind `<!-- tested: NAME -->`."""
    found = re.search(rf"<!-- tested: {name} -->\n```\w+\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"the README has no snippet {name}"
    return found[1]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """A deployment of one node and one worker."""
    with EmbeddedServer() as redis, Api(redis.url) as node, Worker(redis.url):
        yield node


@pytest.fixture(autouse=True)
def _logs(request: pytest.FixtureRequest) -> Iterator[None]:
    with logs_if_failed(request):
        yield


def test_curl(api: Api) -> None:
    """The create answers what is shown, and both ways of reading the events end with `done`."""
    text = snippet("curl").replace("localhost:8000", f"127.0.0.1:{api.port}")
    create, read, resume = re.split(r"\n(?=curl)", text)
    made = json.loads(subprocess.check_output(["bash", "-c", create.partition("\n#")[0]], timeout=20))
    assert made["status"] == "queued"
    assert made["events_url"] == f"/v1/streams/{made['id']}/events"
    command = read.partition("#")[0].replace("rs_…", made["id"])
    events = subprocess.check_output(
        ["bash", "-c", command.replace("curl", "curl -s")], text=True, timeout=20
    )
    assert "event: done" in events
    some_id = re.findall(r"^id: (\S+)", events, re.MULTILINE)[1]
    command = resume.partition("#")[0].replace("rs_…", made["id"]).replace("143-1", some_id)
    later = subprocess.check_output(["bash", "-c", command.replace("curl", "curl -s")], text=True, timeout=20)
    assert "event: start" not in later
    assert later.rstrip().endswith(events.rstrip().rpartition("\n\n")[2])


async def test_python(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python snippet runs as it stands and prints events until the verified end."""
    code = snippet("python").replace("http://127.0.0.1:8000", f"http://127.0.0.1:{api.port}")
    compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    async with asyncio.timeout(30):
        await eval(compiled, {})  # noqa: S307 our own README
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Start(")
    assert printed[-1].startswith("Done(")


def test_openai(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """The snippet with the SDK runs as it stands: a whole answer, and one that is resumed to its end."""
    code = snippet("openai").replace("http://127.0.0.1:8000", f"http://127.0.0.1:{api.port}")
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 our own README
    text, _, rest = capsys.readouterr().out.partition("\nalso at ")
    where, *events = rest.splitlines()
    assert api.call("GET", f"{where}/text").body.decode() == text
    assert "response.created" not in events
    assert events[-1] == "response.completed"


def test_browser(api: Api) -> None:
    """The snippet runs in a page as it stands, and the text stands in it."""
    with chromium() as browser:
        tab = Tab(browser, f"http://127.0.0.1:{api.port}/")
        tab.page.evaluate("document.body.textContent = ''")
        tab.page.evaluate(f"async () => {{ {snippet('browser')} window.source = events; }}")
        wait_until(lambda: tab.page.evaluate("window.source.readyState") == 2, "the source is closed", 20)
        text = tab.page.evaluate("document.body.textContent")
        tab.close()
    assert text == simulation.text(1, 0, 40)


def test_nginx() -> None:
    """Its lines are those of the shipped configuration, which another test runs with the real nginx."""
    shipped = (README.parent / "ops" / "nginx" / "nginx.conf").read_text()
    lines = {line.partition("#")[0].strip() for line in shipped.splitlines()}
    assert set(snippet("nginx").splitlines()) <= lines
