"""The browser's own EventSource, in Chromium: it resumes by itself, and stops where there is nothing more."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.balancers import balanced
from tests.support.browser import Tab, chromium
from tests.support.stage import Stage, text_of
from tests.support.system import Api
from tests.support.wait import wait_until

# What an EventSource hears, kept in the page: texts by response, opens, ends. It is never told to stop.
LISTEN = """(url) => {
  const seen = { texts: {}, opens: 0, errors: 0, ids: [], ends: 0, source: new EventSource(url) };
  window.seen = seen;
  seen.source.onopen = () => { seen.opens += 1; };
  seen.source.onerror = () => { seen.errors += 1; };
  seen.source.addEventListener("delta", (event) => {
    const data = JSON.parse(event.data);
    seen.texts[data.stream ?? ""] = (seen.texts[data.stream ?? ""] ?? "") + data.text;
    seen.ids.push(event.lastEventId);
  });
  seen.source.addEventListener("done", () => { seen.ends += 1; });
}"""
SEEN = """() => ({ ...window.seen, source: undefined, state: window.seen.source.readyState })"""
CLOSED = 2  # EventSource.CLOSED
TOKENS = 100_000  # longer than any test: `ended` ends it

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the module."""
    with chromium() as browser:
        yield browser


def seen(tab: Tab) -> dict[str, Any]:
    """What the page's EventSource has heard."""
    heard: dict[str, Any] = tab.page.evaluate(SEEN)
    return heard


def restarted(scene: Stage, api: Api) -> Api:
    """The node is killed and comes back at its address: every connection is cut in mid-stream."""
    api.kill()
    return scene._stack.enter_context(Api(scene.redis.url, "--port", str(api.port)))


def ended(api: Api, made: dict[str, Any], seed: int) -> str:
    """End a response that goes on; its text, which is as it was made."""
    assert api.call("DELETE", f"/v1/streams/{made['id']}").status == 202
    api.wait_status(made["id"], "cancelled")
    text = api.call("GET", made["text_url"]).body.decode()
    assert text_of(seed, TOKENS).startswith(text)
    return text


def test_a_cut_is_resumed_and_204_stops_it(scene: Stage, browser: Browser) -> None:
    """A node killed in mid-stream: the EventSource comes back by itself, has every byte once, and closes."""
    api = scene.api()
    scene.worker()
    made = api.create(tokens=TOKENS, rate=80, seed=5)
    tab = Tab(browser, f"http://127.0.0.1:{api.port}/")
    tab.page.evaluate(LISTEN, made["events_url"])
    wait_until(lambda: len(seen(tab)["texts"].get("", "")) > 200, "text")
    api = restarted(scene, api)
    before = len(seen(tab)["ids"])
    wait_until(lambda: seen(tab)["opens"] == 2, "it is back", 60)
    wait_until(lambda: len(seen(tab)["ids"]) > before + 10, "it reads on", 60)
    text = ended(api, made, 5)
    wait_until(lambda: seen(tab)["ends"] == 1, "the end", 60)
    wait_until(lambda: seen(tab)["state"] == CLOSED, "204 closes it", 60)
    heard = seen(tab)
    assert heard["texts"] == {"": text}
    assert heard["opens"] == 2
    assert heard["ids"] == sorted(set(heard["ids"]), key=lambda position: int(position.partition("-")[0]))
    tab.close()


def test_many_on_one_connection_resume_together(scene: Stage, browser: Browser) -> None:
    """More than the six connections that a browser opens to a host, on one: cut and resumed."""
    api = scene.api()
    scene.worker()
    made = [api.create(tokens=TOKENS, rate=60, seed=seed) for seed in range(1, 9)]
    tab = Tab(browser, f"http://127.0.0.1:{api.port}/")
    tab.page.evaluate(LISTEN, "/v1/events?streams=" + ",".join(one["id"] for one in made))
    wait_until(lambda: len(seen(tab)["texts"]) == 8, "text of each")
    api = restarted(scene, api)
    wait_until(lambda: seen(tab)["opens"] == 2, "it is back", 60)
    texts = {one["id"]: ended(api, one, seed) for seed, one in enumerate(made, 1)}
    wait_until(lambda: seen(tab)["ends"] == 8, "every end", 60)
    wait_until(lambda: seen(tab)["state"] == CLOSED, "204 closes it", 60)
    assert seen(tab)["texts"] == texts
    tab.close()


@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_behind_a_proxy(scene: Stage, browser: Browser, name: str) -> None:
    """Through each proxy of ops/: events arrive while they are made, and 204 closes it there too."""
    api = scene.api()
    scene.worker()
    with balanced(name, api.port) as port:
        made = api.create(tokens=TOKENS, rate=30, seed=7)
        tab = Tab(browser, f"http://127.0.0.1:{port}/")
        tab.page.evaluate(LISTEN, made["events_url"])
        wait_until(lambda: len(seen(tab)["ids"]) > 5, "events")
        assert api.status(made["id"])["status"] == "running"
        text = ended(api, made, 7)
        wait_until(lambda: seen(tab)["state"] == CLOSED, "204 closes it", 60)
        assert seen(tab)["texts"] == {"": text}
        tab.close()
