"""A real model behind the relay: SmolLM2-135M on llama.cpp's own server, read through the openai source."""

import hashlib
from collections.abc import Iterator

import pytest

from relay.embedded import EmbeddedServer
from tests.support.stopwatch import Stopwatch
from tests.support.system import Api, Reader, Worker, call, metric
from tests.support.wait import wait_until

pytestmark = [pytest.mark.llm, pytest.mark.timeout(240)]

ASK = [{"role": "user", "content": "Explain in a few sentences why rivers are never straight."}]

NEVER_ENDS = {"0": -100, "2": -100}  # its two tokens that end an answer


@pytest.fixture(scope="module")
def redis() -> Iterator[EmbeddedServer]:
    """A server for all tests of this file."""
    with EmbeddedServer() as redis:
        yield redis


@pytest.fixture(scope="module")
def api(redis: EmbeddedServer, model: str) -> Iterator[Api]:
    """A node that sends every name it does not know to the model."""
    with Api(redis.url, upstream_base_url=model) as api:
        yield api


@pytest.fixture
def worker(redis: EmbeddedServer, model: str) -> Iterator[Worker]:
    """A worker that does the same."""
    with Worker(redis.url, upstream_base_url=model, lease_s=2, lease_renew_s=0.5) as worker:
        yield worker


def create(api: Api, **more: object) -> str:
    """Ask the model; the id of the response."""
    answer = api.call("POST", "/v1/streams", {"model": "smollm2", "messages": ASK, **more})
    assert answer.status == 201, answer
    made: str = answer.json["id"]
    return made


def reader(api: Api, response_id: str) -> Reader:
    """A reader of it."""
    return Reader(api.port, f"/v1/streams/{response_id}/events")


def has_some_text(reader: Reader) -> bool:
    """Whether a few tokens have come."""
    return len(reader.text) > 20


@pytest.mark.usefixtures("worker")
def test_a_real_answer_arrives_exact(api: Api) -> None:
    """Read to done as it is made: the digest is right, the text endpoint agrees, and the usage is told."""
    made = create(api, max_tokens=80, temperature=0, seed=1)
    with reader(api, made) as events:
        events.run(60)
        assert events.exact() == ""
        text = events.text
        done = events.terminal
    assert done is not None
    assert done.data["finish_reason"] in {"stop", "length"}
    assert done.data["usage"]["completion_tokens"] >= 20
    assert done.data["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert len(text.split()) >= 15
    start, *deltas = events.events
    assert (start.name, start.data["model"]) == ("start", "smollm2")
    assert len([event for event in deltas if event.name == "delta"]) >= 10  # as it was made, not at the end
    answer = api.call("GET", f"/v1/streams/{made}/text")
    assert answer.body.decode() == text
    told = api.status(made)
    assert (told["status"], told["text_bytes"]) == ("completed", len(text.encode()))


@pytest.mark.usefixtures("worker")
def test_two_readers_of_a_real_answer_read_the_same(api: Api) -> None:
    """One from the start, one that comes later and resumes once."""
    made = create(api, max_tokens=60)
    with reader(api, made) as first:
        first.until(has_some_text, "some text")
        with reader(api, made) as late:
            late.until(has_some_text, "the same text")
        texts = (event for event in late.named("delta") if event.data["channel"] == "content")
        cut = next(texts)  # not the last one: by now all may have come
        with Reader(api.port, f"/v1/streams/{made}/events", after=cut.id) as again:
            again.run(60)
        first.run(60)
    assert first.exact() == ""
    assert again.exact(before=cut.data["text"]) == ""
    assert cut.data["text"] + again.text == first.text


def is_generating(model: str) -> bool:
    """Whether the model is at work, by its own account."""
    port = int(model.removesuffix("/v1").rpartition(":")[2])
    return any(slot["is_processing"] for slot in call(port, "GET", "/slots").json)


def test_a_cancelled_answer_is_not_generated_on(api: Api, worker: Worker, model: str) -> None:
    """The upstream's connection is closed, and the model stands still."""
    made = create(api, max_tokens=3000, logit_bias=NEVER_ENDS)
    with reader(api, made) as events:
        events.until(has_some_text, "some text")
        assert is_generating(model)
        assert api.call("DELETE", f"/v1/streams/{made}").status == 202
        watch = Stopwatch()
        events.run()
        watch.within(2, "from the cancel to the end")
        assert events.exact() == ""
        assert events.terminal is not None
        assert events.terminal.data["finish_reason"] == "cancelled"
    wait_until(lambda: metric(worker.metrics_port, "relay_worker_responses") == 0, "the worker lets go")
    wait_until(lambda: not is_generating(model), "the model stands still")


def test_a_worker_lost_in_mid_answer_is_a_typed_error(
    api: Api, redis: EmbeddedServer, model: str, worker: Worker
) -> None:
    """This upstream continues no prefix: the reader hears so, within the lease and a little more."""
    made = create(api, max_tokens=3000, logit_bias=NEVER_ENDS)
    with reader(api, made) as events:
        events.until(has_some_text, "some text")
        worker.kill()
        with Worker(redis.url, upstream_base_url=model, lease_s=2, lease_renew_s=0.5):
            watch = Stopwatch()
            events.run()
            watch.within(8, "from another worker's start to the end")
        terminal = events.terminal
        assert terminal is not None
        assert (terminal.name, terminal.data["code"]) == ("error", "worker_lost")
        assert terminal.data["retryable"]
    assert call(api.port, "GET", f"/v1/streams/{made}/text").body.decode() == events.text
