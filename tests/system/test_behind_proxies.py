"""Behind the nginx and the HAProxy of ops/, with their real binaries: as soon as it is made, as if direct."""

from collections.abc import Iterator

import pytest

from tests.support.balancers import NAMES, balanced
from tests.support.stage import Stage, has_text, text_of
from tests.support.system import Api, Reader, call


@pytest.fixture
def api(scene: Stage) -> Api:
    """A node, and a worker behind it."""
    api = scene.api()
    scene.worker()
    return api


@pytest.fixture(params=NAMES)
def port(request: pytest.FixtureRequest, api: Api) -> Iterator[int]:
    """Each proxy in turn."""
    with balanced(request.param, api.port) as port:
        yield port


def test_events_come_as_they_are_made(api: Api, port: int) -> None:
    """At ten tokens a second each is here before the next ones are made: nothing gathers on the way."""
    made = api.create(tokens=6000, rate=10)  # ten minutes: what gathers on the way stays there
    with Reader(port, made["events_url"]) as reader:
        reader.until(has_text(1), "the first token")
        for _ in range(10):
            there = api.status(made["id"])
            assert there["status"] == "running"
            # A token or two may come with it, and no more than are made while this machine looks away.
            reader.until(lambda reader: reader.position >= there["position"], "what is there")  # noqa: B023
            reader.past(reader.position)
        assert api.call("DELETE", f"/v1/streams/{made['id']}").status == 202
        reader.run()
        assert reader.exact() == ""
        assert text_of(1, 6000).startswith(reader.text)


def test_a_shared_connection_and_a_resume(api: Api, port: int) -> None:
    """Many on one connection, a cut, and the last id: the proxy passes each of them on."""
    made = [api.create(tokens=200, rate=100, seed=seed) for seed in (1, 2)]
    path = "/v1/events?streams=" + ",".join(one["id"] for one in made)
    with Reader(port, path) as cut:
        cut.some(20)
    with Reader(port, path, after=cut.last_id) as rest:
        rest.run()
    for seed, one in zip((1, 2), made, strict=True):
        events = [event for event in (*cut.events, *rest.events) if event.data.get("stream") == one["id"]]
        assert "".join(event.data["text"] for event in events if event.name == "delta") == text_of(seed, 200)
    assert call(port, "GET", path, headers={"Last-Event-ID": rest.last_id}).status == 204
    assert call(port, "GET", "/metrics").status == 404
