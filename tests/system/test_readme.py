"""The README's snippets do what it says."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import simulation
from relay.embedded import EmbeddedServer
from tests.support.browser import Tab, chromium
from tests.support.system import Api, Worker
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(240)

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


def run(*command: str) -> str:
    """What a command says that ends well."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_curl(api: Api) -> None:
    """The lines run as they stand, one after the other; from any event's id on the same text comes again."""
    text = snippet("curl").replace("localhost:8000", f"127.0.0.1:{api.port}")
    events = run("bash", "-euo", "pipefail", "-c", text)
    assert "event: done" in events
    response_id = json.loads(re.findall(r"event: start\n.*\ndata: (.*)", events)[0])["id"]
    assert api.call("GET", f"/v1/streams/{response_id}/text").body.decode() == simulation.text(1, 0, 40)
    some_id = re.findall(r"^id: (\S+)", events, re.MULTILINE)[1]
    later = run("curl", "-sN", f"http://127.0.0.1:{api.port}/v1/streams/{response_id}/events?after={some_id}")
    assert "event: start" not in later
    assert later.rstrip().endswith(events.rstrip().rpartition("\n\n")[2])


def test_python(api: Api) -> None:
    """The Python snippet is a program that prints events until the verified end."""
    code = snippet("python").replace("http://127.0.0.1:8000", f"http://127.0.0.1:{api.port}")
    printed = run(sys.executable, "-c", code).splitlines()
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
        wait_until(lambda: tab.page.evaluate("window.source.readyState") == 2, "the source is closed")
        text = tab.page.evaluate("document.body.textContent")
        tab.close()
    assert text == simulation.text(1, 0, 40)


def test_nginx() -> None:
    """Its lines are those of the shipped configuration, which another test runs with the real nginx."""
    shipped = (README.parent / "ops" / "nginx" / "nginx.conf").read_text()
    lines = {line.partition("#")[0].strip() for line in shipped.splitlines()}
    assert set(snippet("nginx").splitlines()) <= lines
