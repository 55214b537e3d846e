"""The HTTP contract from outside: real API nodes and workers, readers on raw sockets.

`house` is a deployment that works: two nodes and a worker. `quiet` has no worker, so that nothing in it
changes by itself. `locked` is a node with keys. What stops or breaks something has a deployment of its own.
"""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from api.routes.health import ready
from relay import simulation
from relay.embedded import EmbeddedServer, free_port
from relay.keys import JOBS_BACKGROUND, JOBS_INTERACTIVE, PRESSURE
from tests.support.fake_redis import Command, bulk, fake_redis, polite
from tests.support.keys import assert_no_leaks
from tests.support.servers import admin
from tests.support.stage import House
from tests.support.stopwatch import Stopwatch
from tests.support.system import Answer, Api, Process, Reader, Worker, call, metric
from tests.support.wait import wait_until

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads what Linux's kernel says"),
    pytest.mark.timeout(180),
]

NEVER_MADE = "rs_" + "0" * 24
EMPTY_SHA256 = hashlib.sha256().hexdigest()
BODY_MAX = 800_000
ALICE = {"Authorization": "Bearer alice-secret-1"}
BOB = {"Authorization": "Bearer bob-secret-22"}


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Two nodes and a worker; afterwards no key without a TTL is left."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url) as api,
        Api(redis.url) as other,
        Worker(redis.url, concurrency=1000),
    ):
        yield House(redis, api, other)
        with admin(redis.url) as client:
            assert_no_leaks(client)


@pytest.fixture(scope="module")
def quiet() -> Iterator[House]:
    """One node and no worker: what is created stays queued."""
    with EmbeddedServer() as redis, Api(redis.url, keepalive_s=1, max_body_bytes=BODY_MAX) as api:
        yield House(redis, api, api)


@pytest.fixture(scope="module")
def locked(house: House) -> Iterator[Api]:
    """A node of the house with keys."""
    with Api(house.redis.url, api_keys="alice:alice-secret-1,bob:bob-secret-22") as api:
        yield api


def error_of(answer: Answer, status: int) -> dict[str, Any]:
    """The error in an answer, which has this status and the contract's body."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json.keys() == {"error"}
    error: dict[str, Any] = answer.json["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["message"]
    assert "Traceback" not in answer.body.decode()
    if status in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1
    return error


def finished(api: Api, tokens: int = 40, rate: float = 400, **more: object) -> dict[str, Any]:
    """A response that has ended; the create's JSON."""
    made = api.create(tokens=tokens, rate=rate, **more)  # type: ignore[arg-type]
    api.wait_status(made["id"], "completed")
    return made


def queued(house: House, **more: object) -> dict[str, Any]:
    """A response that stays queued; its job is taken out of the queue, for one that stands is pressure."""
    made = house.api.create(**more)  # type: ignore[arg-type]
    with admin(house.redis.url) as client:
        client.xtrim(JOBS_INTERACTIVE, 0, approximate=False)
    return made


def running(api: Api, rate: float = 50, seed: int = 1) -> dict[str, Any]:
    """A response that goes on for longer than any test, with some text already; `stop` ends it."""
    made = api.create(tokens=100_000, rate=rate, seed=seed)
    wait_until(lambda: api.status(made["id"])["text_bytes"], "there is text")
    return made


def stop(api: Api, made: dict[str, Any]) -> None:
    """End a response that goes on, with the text that it has."""
    assert api.call("DELETE", f"/v1/streams/{made['id']}").status == 202
    api.wait_status(made["id"], "cancelled")


def text_of(api: Api, made: dict[str, Any]) -> str:
    """The whole text of a response that has ended."""
    return api.call("GET", made["text_url"]).body.decode()


def consumer(api: Api, response_id: str, name: str) -> dict[str, Any]:
    """One consumer of a response's status; {} when it has none of that name."""
    found = [one for one in api.status(response_id)["consumers"] if one["id"] == name]
    return found[0] if found else {}


def at_position(api: Api, response_id: str, name: str, position: int) -> dict[str, Any]:
    """One consumer of a response's status once it is confirmed up to here and no further; else {}."""
    there = consumer(api, response_id, name)
    assert there["position"] <= position
    return there if there["position"] == position else {}


def offset(position: str) -> int:
    """The offset of an id."""
    return int(position.partition("-")[0])


# --- creating


def test_create(house: House) -> None:
    """A create answers 201 with where everything is, before anything has been generated."""
    before = time.time()
    answer = house.api.call(
        "POST", "/v1/streams", {"model": "simulated", "prompt": "hello", "metadata": {"case": "7"}}
    )
    assert answer.status == 201
    made = answer.json
    assert made.keys() >= {"id", "status", "model", "created_at", "events_url", "text_url", "token"}
    assert made["status"] == "queued"
    assert made["model"] == "simulated"
    assert before - 5 < made["created_at"] < time.time() + 5
    assert len(made["token"]) >= 20
    assert answer.headers["location"] == f"/v1/streams/{made['id']}"
    for url in (answer.headers["location"], made["text_url"]):
        assert house.other.call("GET", url).status == 200
    assert house.other.status(made["id"])["metadata"] == {"case": "7"}
    assert house.api.call("DELETE", answer.headers["location"]).status == 202


def test_create_takes_what_openai_takes(house: House) -> None:
    """Messages and every sampling field are taken, whole numbers where fractions may stand."""
    body = {
        "model": "simulated",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "t"}]},
        ],
        "max_tokens": 30,
        "temperature": 1,
        "top_p": 1,
        "seed": 7,
        "stop": ["\n"],
        "user": "u",
        "frequency_penalty": 0,
        "presence_penalty": 0.5,
        "logit_bias": {"50256": -100},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "response_format": {"type": "json_object"},
    }
    answer = house.api.call("POST", "/v1/streams", body)
    assert answer.status == 201, answer
    reader = Reader(house.api.port, answer.json["events_url"]).run()
    assert reader.exact() == ""
    assert reader.terminal is not None
    assert reader.terminal.data["usage"]["completion_tokens"] == 30


def test_an_idempotency_key_makes_one_response(house: House) -> None:
    """The same key and body, on any node and at once, make one response, and answer with it for ever."""
    key = {"Idempotency-Key": "order 66 / été"[:8]}
    body = {"model": "simulated", "prompt": "once", "simulation": {"tokens": 5}}

    def create(number: int) -> Answer:
        node = (house.api, house.other)[number % 2]
        return node.call("POST", "/v1/streams", body, key)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    assert {answer.status for answer in answers} == {201}
    assert len({(answer.json["id"], answer.json["token"]) for answer in answers}) == 1
    house.api.wait_status(answers[0].json["id"], "completed")
    later = create(1)
    assert later.status == 201
    assert later.json["id"] == answers[0].json["id"]
    assert later.json["status"] == "completed"


def test_an_idempotency_key_for_another_body_is_a_conflict(house: House) -> None:
    """A key that stands for another request is 409, whatever differs, and makes nothing."""
    key = {"Idempotency-Key": "a-conflict"}
    house.api.create(tokens=1, headers=key)
    for other in ({"prompt": "else"}, {"metadata": {"a": "b"}}, {"background": True}):
        body = {"model": "simulated", "prompt": "Say it.", "simulation": {"tokens": 1}, **other}
        error = error_of(house.other.call("POST", "/v1/streams", body, key), 409)
        assert error["code"] == "conflict"
        assert error["param"] == "Idempotency-Key"


# --- reading


def test_the_stream_opens_at_once(quiet: House) -> None:
    """A reader of a response without text yet has the head and a comment at once: nothing times out."""
    made = queued(quiet)
    watch = Stopwatch()
    with Reader(quiet.api.port, made["events_url"]) as reader:
        reader.started()
        watch.within(2, "from the connection to the first bytes")
        assert reader.status == 200
        assert reader.comments[0] == "ok"
        assert reader.events == []


def test_nothing_between_may_hold_the_stream(house: House) -> None:
    """The headers keep proxies and caches from gathering, storing or packing what is live."""
    reader = Reader(
        house.api.port, finished(house.api)["events_url"], headers={"Accept-Encoding": "gzip, deflate, br"}
    ).run()
    assert reader.headers["content-type"].startswith("text/event-stream")
    assert {"no-cache", "no-transform"} <= set(reader.headers["cache-control"].split(", "))
    assert reader.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in reader.headers
    assert "content-length" not in reader.headers
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", reader.headers["relay-consumer"])


def test_the_events_are_the_contract_s(house: House) -> None:
    """start, deltas, done; ids are positions that grow; the text and its digest are what was made."""
    made = house.api.create(tokens=150, rate=60, seed=11)
    reader = Reader(house.other.port, made["events_url"]).run()
    assert reader.ended
    start, *deltas, done = [event for event in reader.events if event.name != "notice"]
    assert start.name == "start"
    assert start.data["id"] == made["id"]
    assert start.data["model"] == "simulated"
    assert start.data["created_at"] == pytest.approx(made["created_at"])
    assert {event.name for event in deltas} == {"delta"}
    assert {event.data["channel"] for event in deltas} == {"content"}
    assert len(deltas) > 10  # it came as it was made
    epoch = house.api.status(reader.path.split("/")[3])["epoch"]
    assert all(re.fullmatch(f"[1-9][0-9]*-{epoch}", event.id or "") for event in reader.events)
    assert reader.exact() == ""
    assert reader.text == simulation.text(11, 0, 150)
    assert done.name == "done"
    assert done.data["finish_reason"] == "stop"
    assert done.data["text_bytes"] == len(reader.text.encode())
    assert done.data["usage"]["completion_tokens"] == 150
    assert house.api.status(made["id"])["position"] == reader.position


def test_a_reader_that_comes_late_has_everything(house: House) -> None:
    """A response that has ended is read like one that runs, from its start to its end."""
    made = finished(house.api, tokens=3000, rate=0, seed=3, background=True)
    reader = Reader(house.other.port, made["events_url"]).run()
    assert reader.exact() == ""
    assert reader.text == simulation.text(3, 0, 3000)


def test_many_readers_of_one_response(house: House) -> None:
    """Thirty readers on two nodes, some late, all have the same text, each under a name of its own."""
    made = house.api.create(tokens=300, rate=300, seed=5)
    nodes = itertools.cycle((house.api, house.other))
    readers = [Reader(next(nodes).port, made["events_url"]) for _ in range(20)]
    wait_until(lambda: (house.api.status(made["id"])["text_bytes"] or 0) > 300, "a third is made")
    readers += [Reader(next(nodes).port, made["events_url"]) for _ in range(10)]
    for reader in readers:
        assert reader.run().exact() == ""
    assert len({reader.headers["relay-consumer"] for reader in readers}) == 30
    wait_until(lambda: house.api.status(made["id"])["consumers"] == [], "unnamed consumers are forgotten")


def test_a_slow_reader_loses_nothing_and_stops_nobody(house: House) -> None:
    """Beside a fast reader, one with a tiny window that takes little at a time still gets every byte."""
    made = house.api.create(tokens=4000, rate=2000, seed=9)
    slow = Reader(house.api.port, f"{made['events_url']}?consumer=slow", receive_buffer=2048, maxseg=536)
    fast = Reader(house.api.port, made["events_url"])
    slow.started()
    fast.run()
    assert fast.exact() == ""
    there = consumer(house.other, made["id"], "slow")
    assert there["lag_bytes"] > 0
    assert 0 <= there["position"] < fast.position
    while slow.pump(size=1500):
        pass
    slow.close()
    assert slow.exact() == ""


def test_two_answers_on_one_connection(house: House) -> None:
    """A stream that has ended leaves the connection good for the next request."""
    url = finished(house.api)["events_url"]
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", house.api.port, timeout=10)
    ) as connection:
        for _ in range(3):
            connection.request("GET", url)
            stream = connection.getresponse()
            assert stream.status == 200
            assert stream.read().count(b"event: done") == 1
            connection.request("GET", "/healthz")
            health = connection.getresponse()
            assert (health.status, json.loads(health.read())) == (200, {"status": "ok"})


def test_a_quiet_stream_is_kept_open(quiet: House) -> None:
    """Where nothing happens there is a comment each RELAY_KEEPALIVE_S, and no event."""
    made = queued(quiet)
    with Reader(quiet.api.port, made["events_url"]) as reader:
        reader.until(lambda reader: len(reader.comments) >= 3, "two keep-alive comments")
        assert reader.events == []


# --- resuming


def test_resuming_at_every_id(house: House) -> None:
    """From each id that a reader had, by header or by ?after=, the rest follows exactly."""
    made = house.api.create(tokens=60, rate=30, seed=21)
    whole = Reader(house.api.port, made["events_url"]).run()
    assert len(whole.ids) > 10
    had = ""
    for event in whole.events:
        had += event.data["text"] if event.name == "delta" else ""
        assert event.id is not None
        for path, after in ((made["events_url"], event.id), (f"{made['events_url']}?after={event.id}", None)):
            reader = Reader(house.other.port, path, after=after).run()
            if event.name == "done":
                assert reader.status == 204
                continue
            assert reader.exact(before=had) == ""
            assert offset(reader.ids[0]) > offset(event.id)


def test_the_header_is_newer_than_the_query(house: House) -> None:
    """An EventSource reconnects to the URL it was given with its last id in the header: that one counts."""
    made = finished(house.api)
    whole = Reader(house.api.port, made["events_url"]).run()
    reader = Reader(house.api.port, f"{made['events_url']}?after={whole.ids[0]}", after=whole.ids[-2]).run()
    assert reader.ids == whole.ids[-1:]


def test_resuming_while_it_runs(house: House) -> None:
    """A client that is cut off again and again and comes back anywhere has the text without a seam."""
    made = running(house.api, rate=200, seed=22)
    had, last = "", None
    for turn in range(1000):
        if turn == 40:
            stop(house.api, made)
        node = (house.api, house.other)[turn % 2]
        with Reader(node.port, made["events_url"], after=last) as reader:
            if reader.some(1 + turn % 4).terminal:
                assert reader.exact(before=had) == ""
                break
            had += reader.text
            last = reader.last_id or last
    assert simulation.text(22, 0, 100_000).startswith(had + reader.text)
    assert turn >= 40


def test_after_the_end_there_is_nothing(house: House) -> None:
    """A reconnect past the end gets 204, which stops an EventSource; so does a name that has everything."""
    made = finished(house.api)
    named = f"{made['events_url']}?consumer=me"
    whole = Reader(house.api.port, named).run()
    wait_until(
        lambda: consumer(house.other, made["id"], "me")["position"] == whole.position, "all is confirmed"
    )
    for path, after in ((made["events_url"], whole.last_id), (named, whole.last_id), (named, None)):
        again = Reader(house.other.port, path, after=after).run()
        assert (again.status, again.events) == (204, [])


def test_from_the_start_by_position_zero(house: House) -> None:
    """Position zero is the start, and so is an empty id: what a client has before its first event."""
    made = finished(house.api)
    for after in ("0-0", "0-1", ""):
        assert Reader(house.api.port, made["events_url"], after=after).run().exact() == ""


def test_a_name_goes_on_where_it_was(house: House) -> None:
    """A known consumer that comes without an id goes on at its last confirmed position, on any node."""
    made = running(house.api, rate=300, seed=23)
    url = f"{made['events_url']}?consumer=my.phone-1"
    with Reader(house.api.port, f"{url}&window=100000") as first:
        first.until(lambda reader: len(reader.ids) > 5, "some events")
        assert first.headers["relay-consumer"] == "my.phone-1"
        confirmed, had = 0, ""
        for event in first.events[:4]:
            confirmed = offset(event.id or "")
            had += event.data["text"] if event.name == "delta" else ""
        path = f"/v1/streams/{made['id']}/consumers/my.phone-1/ack"
        assert house.other.call("POST", path, {"position": confirmed}).status == 204
        wait_until(
            lambda: consumer(house.other, made["id"], "my.phone-1")["position"] == confirmed,
            "it is confirmed",
        )
    wait_until(
        lambda: consumer(house.other, made["id"], "my.phone-1")["state"] == "detached", "it has hung up"
    )
    stop(house.api, made)
    second = Reader(house.other.port, url).run()
    assert second.exact(before=had) == ""
    assert simulation.text(23, 0, 100_000).startswith(had + second.text)


def test_of_two_connections_with_one_name_the_newer_wins(house: House) -> None:
    """The older one is told so by an error without an id, and ended; the newer one has the rest."""
    made = running(house.api, rate=200, seed=24)
    url = f"{made['events_url']}?consumer=tab"
    older = Reader(house.api.port, url)
    older.until(lambda reader: reader.text, "some text")
    had = older.text
    newer = Reader(house.other.port, url, after=older.last_id)
    newer.started()
    older.run()
    assert older.ended
    last = older.events[-1]
    assert (last.name, last.id) == ("error", None)
    assert last.data["code"] == "superseded"
    assert last.data["retryable"] is False
    newer.past(newer.position)  # it goes on
    stop(house.api, made)
    newer.run()
    whole = text_of(house.api, made)
    assert simulation.text(24, 0, 100_000).startswith(whole)
    assert whole.startswith(older.text)
    assert newer.exact(before=had) == ""
    assert had + newer.text == whole


# --- explicit acks


def test_a_window_bounds_what_is_unconfirmed(house: House) -> None:
    """With ?window= no more than it goes out before the client acks, whatever its kernel took."""
    made = house.api.create(tokens=600, rate=600, seed=31)
    name = "slow.reader_1"
    path = f"/v1/streams/{made['id']}/consumers/{name}/ack"
    with Reader(house.api.port, f"{made['events_url']}?consumer={name}&window=700") as reader:
        reader.until(lambda reader: reader.text, "some text")
        house.api.wait_status(made["id"], "completed")
        assert reader.drain().position <= 700
        acked = 0
        while reader.terminal is None:
            there = wait_until(
                lambda: at_position(house.other, made["id"], name, acked),  # noqa: B023
                "the ack is in the status",
            )
            assert there["lag_bytes"] == house.other.status(made["id"])["position"] - acked
            acked = reader.position
            assert house.other.call("POST", path, {"position": acked}).status == 204
            reader.past(acked)
            assert reader.drain().position - acked <= 700 or reader.terminal
        reader.run()
    assert reader.exact() == ""


@pytest.mark.parametrize("window", [256, 1000, 4096])
def test_an_ack_is_seen_in_the_status_also_within_an_entry(house: House, window: int) -> None:
    """What a fast source makes is one entry, of which a small window lets out a part; and after the end."""
    made = house.api.create(tokens=1500, rate=0, background=True)
    house.api.wait_status(made["id"], "completed")
    path = f"/v1/streams/{made['id']}/consumers/me/ack"
    with Reader(house.api.port, f"{made['events_url']}?consumer=me&window={window}") as reader:
        for _ in range(5):
            if reader.terminal is None:
                reader.past(reader.position)
            assert house.other.call("POST", path, {"position": reader.position}).status == 204
            wait_until(
                lambda: consumer(house.other, made["id"], "me")["position"] >= reader.position,
                "the ack is seen",
            )
        told = consumer(house.other, made["id"], "me")
        assert told["lag_bytes"] == house.other.status(made["id"])["position"] - told["position"]


def test_an_ack_may_be_an_id_and_may_be_repeated(house: House) -> None:
    """An ack takes an offset or an event's id; repeated and older ones are taken and move nothing back."""
    made = running(house.api, rate=500)
    path = f"/v1/streams/{made['id']}/consumers/me/ack"
    with Reader(house.api.port, f"{made['events_url']}?consumer=me&window=100000") as reader:
        reader.until(lambda reader: len(reader.ids) > 3, "some events")
        for position in (reader.ids[2], offset(reader.ids[2]), offset(reader.ids[0]), 0):
            answer = house.api.call("POST", path, {"position": position})
            assert (answer.status, answer.body) == (204, b"")
        wait_until(
            lambda: consumer(house.api, made["id"], "me")["position"] == offset(reader.ids[2]), "it has moved"
        )
    stop(house.api, made)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"position": -1}, 422),
        ({"position": 10**15}, 422),
        ({"position": 10**30}, 422),
        ({"position": 1.5}, 422),
        ({"position": True}, 422),
        ({"position": None}, 422),
        ({"position": [1]}, 422),
        ({"position": "99999999-1"}, 422),
        ({}, 422),
        ({"position": 0, "more": 1}, 422),
        ({"position": "nonsense"}, 400),
        ({"position": ""}, 400),
        ([], 400),
        (b"{", 400),
    ],
)
def test_a_bad_ack(quiet: House, body: object, status: int) -> None:
    """An ack that no client could mean is refused, and names what is wrong with it."""
    made = queued(quiet)
    with Reader(quiet.api.port, f"{made['events_url']}?consumer=me&window=1000") as reader:
        reader.started()
        url = f"/v1/streams/{made['id']}/consumers/me/ack"
        headers = {"Content-Type": "application/json"}
        error = error_of(quiet.api.call("POST", url, body, headers), status)
        if status == 422:
            assert error["param"] in {"position", "more"}
        assert consumer(quiet.api, made["id"], "me")["position"] == 0


@pytest.mark.parametrize("name", ["nobody", "x" * 65, "%00", "a%20b", "%F0%9F%8C%8A", "me%2F..", "*"])
def test_an_ack_for_nobody(quiet: House, name: str) -> None:
    """An ack for a consumer that is not there is 404."""
    made = queued(quiet)
    error_of(quiet.api.call("POST", f"/v1/streams/{made['id']}/consumers/{name}/ack", {"position": 0}), 404)


# --- looking


def test_status_while_it_runs(house: House) -> None:
    """The status tells how far the response is, and for each consumer how far behind."""
    made = running(house.api)
    with Reader(house.other.port, f"{made['events_url']}?consumer=me") as reader:
        reader.until(lambda reader: len(reader.ids) > 5, "some events")

        def seen_live() -> dict[str, Any]:  # whatever else the machine has to do meanwhile
            told = house.api.status(made["id"])
            is_live = [one["state"] for one in told["consumers"]] == ["live"]
            return told if is_live and told["level"] == 0 else {}

        told = wait_until(seen_live, "a reader that keeps up is seen as one")
        assert told["id"] == made["id"]
        assert told["status"] == "running"
        assert told["model"] == "simulated"
        assert told["position"] >= reader.position
        assert 0 < told["text_bytes"] < told["position"]
        assert told["finish_reason"] is None
        (me,) = told["consumers"]
        assert me.keys() >= {"id", "position", "lag_bytes", "lag_entries", "idle_ms", "state"}
        assert me["id"] == "me"
        assert me["lag_bytes"] == told["position"] - me["position"]
        assert isinstance(me["lag_entries"], int)
        assert me["idle_ms"] < 5000
    house.api.call("DELETE", f"/v1/streams/{made['id']}")


def test_status_after_the_end(house: House) -> None:
    """The status of a response that has ended says how, as its last event did."""
    made = finished(house.api)
    reader = Reader(house.api.port, made["events_url"]).run()
    told = house.other.status(made["id"])
    assert reader.terminal is not None
    assert {name: told[name] for name in reader.terminal.data} == reader.terminal.data
    assert told["status"] == "completed"
    assert told["position"] == reader.position
    assert made["created_at"] <= told["ended_at"] <= time.time() + 5


def test_the_text_so_far(house: House) -> None:
    """The text endpoint has the content as it is now, and the position from which to read on."""
    made = running(house.api, rate=200)
    answer = house.other.call("GET", made["text_url"])
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["relay-status"] == "running"
    text = answer.body.decode()
    assert text
    whole = simulation.text(1, 0, 100_000)
    assert whole.startswith(text)
    with Reader(house.api.port, made["events_url"], after=answer.headers["relay-position"]) as reader:
        reader.until(lambda reader: reader.text, "what follows")
        assert whole.startswith(text + reader.text)
    house.api.call("DELETE", f"/v1/streams/{made['id']}")


def test_the_whole_text(house: House) -> None:
    """At the end the text is the response, to its last byte, and the status says that it is."""
    made = finished(house.api, tokens=20_000, rate=0, seed=4, background=True)
    answer = house.api.call("GET", made["text_url"])
    assert answer.headers["relay-status"] == "completed"
    assert answer.body.decode() == simulation.text(4, 0, 20_000)
    assert house.api.status(made["id"])["sha256"] == hashlib.sha256(answer.body).hexdigest()
    assert answer.headers["relay-position"] == "{position}-{epoch}".format(**house.api.status(made["id"]))


def test_the_list_is_newest_first(house: House) -> None:
    """The caller's recent responses, the newest first, from any node."""
    ids = [house.api.create(tokens=1)["id"] for _ in range(3)]
    answer = house.other.call("GET", "/v1/streams")
    assert answer.status == 200
    assert [one["id"] for one in answer.json["data"]][:3] == ids[::-1]


# --- cancelling


def test_a_cancel_reaches_everyone_within_a_second(house: House) -> None:
    """DELETE stops the generation; every reader has `done` with finish_reason cancelled within a second."""
    made = running(house.api)
    readers = [Reader(node.port, made["events_url"]) for node in (house.api, house.other)]
    for reader in readers:
        reader.until(lambda reader: reader.text, "some text")
    watch = Stopwatch()
    assert house.other.call("DELETE", f"/v1/streams/{made['id']}").status == 202
    for reader in readers:
        reader.run()
    watch.within(1, "from the cancel to the end of every reader")
    for reader in readers:
        assert reader.exact() == ""
        assert reader.terminal is not None
        assert reader.terminal.data["finish_reason"] == "cancelled"
    told = house.api.status(made["id"])
    assert (told["status"], told["finish_reason"]) == ("cancelled", "cancelled")
    position = told["position"]
    assert house.api.call("DELETE", f"/v1/streams/{made['id']}").status == 202
    assert house.api.status(made["id"])["position"] == position


def test_a_queued_response_is_cancelled_without_a_worker(quiet: House) -> None:
    """What no worker has taken ends at once, with an empty text and its digest."""
    made = queued(quiet)
    with Reader(quiet.api.port, made["events_url"]) as reader:
        reader.started()
        answer = quiet.api.call("DELETE", f"/v1/streams/{made['id']}")
        assert (answer.status, answer.json["status"]) == (202, "cancelled")
        reader.run()
    (done,) = reader.events
    assert done.name == "done"
    assert done.data["finish_reason"] == "cancelled"
    assert (done.data["text_bytes"], done.data["sha256"]) == (0, EMPTY_SHA256)
    assert quiet.api.status(made["id"])["sha256"] == EMPTY_SHA256


def test_a_cancel_after_the_end_changes_nothing(house: House) -> None:
    """DELETE of a response that has ended is 202 and leaves it as it ended."""
    made = finished(house.api)
    before = house.api.status(made["id"])
    answer = house.api.call("DELETE", f"/v1/streams/{made['id']}")
    assert (answer.status, answer.json["status"]) == (202, "completed")
    assert house.api.status(made["id"]) == before


def test_a_reader_that_hangs_up_is_forgotten(house: House) -> None:
    """A client that goes away in mid-stream leaves no consumer, and the generation goes on."""
    made = running(house.api)
    reader = Reader(house.api.port, made["events_url"])
    reader.until(lambda reader: reader.text, "some text")
    reader.close()
    wait_until(lambda: house.api.status(made["id"])["consumers"] == [], "it is forgotten")
    position = house.api.status(made["id"])["position"]
    wait_until(lambda: house.api.status(made["id"])["position"] > position, "it goes on")
    house.api.call("DELETE", f"/v1/streams/{made['id']}")


# --- what is no more, and what never was


def test_what_has_expired(house: House) -> None:
    """After its retention a response is 404 or 410 everywhere, and its list entry is left out."""
    made = finished(house.api)
    with admin(house.redis.url) as client:
        keys = list(client.scan_iter(f"*{made['id']}*"))
        assert keys
        for key in keys:
            assert 0 < client.ttl(key) <= 3600
            client.pexpire(key, 1)
        wait_until(lambda: not client.exists(*keys), "its time is over")
    for method, path in _calls(made["id"]):
        answer = house.api.call(method, path, {"position": 0} if method == "POST" else None)
        error_of(answer, answer.status)
        assert answer.status in {404, 410}, (method, path)
    assert made["id"] not in [one["id"] for one in house.api.call("GET", "/v1/streams").json["data"]]


def test_what_has_been_and_what_never_was() -> None:
    """Once its retention is over a response is 410; one that is lost before, or never was, is 404."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url, retention_s=10, lease_s=2, lease_renew_s=0.5, pause_max_s=5) as api,
    ):
        made, lost = api.create(), api.create()
        with admin(redis.url) as client:
            client.delete(*client.scan_iter(f"*{lost['id']}*"))
            assert error_of(api.call("GET", f"/v1/streams/{lost['id']}"), 404)["code"] == "not_found"
            wait_until(lambda: not list(client.scan_iter(f"*{made['id']}*")), "its time is over", 40)
        wait_until(lambda: api.call("GET", f"/v1/streams/{made['id']}").status != 404, "a second at most")
        for method, path in _calls(made["id"]):
            answer = api.call(method, path, {"position": 0} if method == "POST" else None)
            assert error_of(answer, 410)["code"] == "expired"


def test_a_response_that_expires_under_its_reader(quiet: House) -> None:
    """A reader whose response is gone is told by a typed error, and does not hang."""
    made = queued(quiet)
    with Reader(quiet.api.port, made["events_url"]) as reader, admin(quiet.redis.url) as client:
        reader.started()
        client.delete(*client.scan_iter(f"*{made['id']}*"))
        reader.run()
    assert reader.ended
    assert reader.events[-1].name == "error"
    assert reader.events[-1].data["code"] == "stream_lost"


@pytest.mark.parametrize(
    "response_id",
    [
        NEVER_MADE,
        "x",
        "rs_" + "0" * 23,
        "rs_" + "0" * 25,
        "rs_" + "A" * 24,
        "rs_" + "g" * 24,
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "%ff%fe",
        "*",
        "{" + NEVER_MADE + "}",
        NEVER_MADE + "%0a",
        "%F0%9F%8C%8A",
        "x" * 8000,
    ],
)
def test_an_id_that_was_never_made(quiet: House, response_id: str) -> None:
    """Whatever stands where an id should, every call is 404 with the contract's error."""
    for method, path in _calls(response_id):
        error = error_of(quiet.api.call(method, path, {"position": 0} if method == "POST" else None), 404)
        assert error["code"] == "not_found"
        assert len(error["message"]) < 300


def _calls(response_id: str) -> Sequence[tuple[str, str]]:
    """Every call on one response."""
    url = f"/v1/streams/{response_id}"
    return (
        ("GET", url),
        ("GET", f"{url}/text"),
        ("GET", f"{url}/events"),
        ("POST", f"{url}/consumers/me/ack"),
        ("DELETE", url),
    )


@pytest.mark.parametrize(
    "path", ["/v1/streams/../../etc/passwd", "/v1/stream", "/v1/streams/x/y", "//v1/streams", "/v1", "/%00"]
)
def test_no_such_route(quiet: House, path: str) -> None:
    """A path that leads nowhere is 404 in the contract's form."""
    assert error_of(quiet.api.call("GET", path), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/streams", "GET, HEAD, POST"),
        ("DELETE", "/v1/streams", "GET, HEAD, POST"),
        ("PATCH", "/v1/streams/" + NEVER_MADE, "DELETE, GET, HEAD"),
        ("POST", "/v1/streams/" + NEVER_MADE, "DELETE, GET, HEAD"),
        ("POST", f"/v1/streams/{NEVER_MADE}/events", "GET"),
        ("HEAD", f"/v1/streams/{NEVER_MADE}/events", "GET"),
        ("GET", f"/v1/streams/{NEVER_MADE}/consumers/me/ack", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
def test_a_wrong_method(quiet: House, method: str, path: str, allowed: str) -> None:
    """A method that a path does not have is 405, and the answer lists those that it has."""
    answer = quiet.api.call(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allowed
    if method != "HEAD":
        assert error_of(answer, 405)["code"] == "method_not_allowed"


def test_head_is_get_without_its_body(house: House) -> None:
    """Probes and `curl -I` ask by HEAD, of everything but an event stream."""
    made = finished(house.api)
    url = f"/v1/streams/{made['id']}"
    for path in (
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/docs",
        "/docs/swagger-ui.css",
        "/v1/streams",
        url,
        made["text_url"],
        "/v1/streams/x",
    ):
        head, get = (house.api.call(method, path) for method in ("HEAD", "GET"))
        assert (head.status, head.body) == (get.status, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert house.api.call("HEAD", made["text_url"]).headers["relay-status"] == "completed"


@pytest.mark.parametrize("path", ["/v1/streams/", "/healthz/", f"/v1/streams/{NEVER_MADE}/"])
def test_a_slash_too_many_is_no_redirect(quiet: House, path: str) -> None:
    """A Location would name a scheme and a host, behind a proxy wrong ones, and a key would go there."""
    assert error_of(quiet.api.call("GET", path), 404)["code"] == "not_found"


# --- bad bodies

GOOD: dict[str, Any] = {"model": "simulated", "prompt": "x"}
BAD_FIELDS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"model": "no-such-model"}, 404, "model"),
    ({"model": ""}, 422, "model"),
    ({"model": "m" * 201}, 422, "model"),
    ({"model": 7}, 422, "model"),
    ({"model": None}, 422, "model"),
    ({"model": "\ud800"}, 422, "model"),
    ({"prompt": ""}, 422, "prompt"),
    ({"prompt": " \n\t"}, 422, "prompt"),
    ({"prompt": 7}, 422, "prompt"),
    ({"prompt": ["x"]}, 422, "prompt"),
    ({"prompt": "x" * 262_145}, 422, "prompt"),
    ({"prompt": "流" * 87_382}, 422, "prompt"),
    ({"prompt": "\udc80"}, 422, "prompt"),
    ({"prompt": None}, 422, None),
    ({"messages": [{"role": "user", "content": "x"}]}, 422, None),  # beside a prompt
    ({"prompt": None, "messages": []}, 422, "messages"),
    ({"prompt": None, "messages": [{}]}, 422, "messages"),
    ({"prompt": None, "messages": [{"role": 7}]}, 422, "messages"),
    ({"prompt": None, "messages": "x"}, 422, "messages"),
    ({"prompt": None, "messages": ["x"]}, 422, "messages.0"),
    ({"prompt": None, "messages": [{"role": "user", "content": "x"}] * 1025}, 422, "messages"),
    ({"prompt": None, "messages": [{"role": "user", "content": "\ud800"}]}, 422, "messages"),
    ({"prompt": None, "messages": [{"role": "user", "\ud800": "x"}]}, 422, "messages"),
    ({"prompt": None, "messages": [{"role": "user", "content": [{"text": {"\udfff": 1}}]}]}, 422, "messages"),
    ({"tools": [{"function": {"\ud800": 1}}]}, 422, "tools"),
    ({"max_tokens": 0}, 422, "max_tokens"),
    ({"max_tokens": -1}, 422, "max_tokens"),
    ({"max_tokens": 10**12}, 422, "max_tokens"),
    ({"max_tokens": 10**400}, 422, "max_tokens"),
    ({"max_tokens": 1.5}, 422, "max_tokens"),
    ({"max_tokens": "9"}, 422, "max_tokens"),
    ({"max_tokens": True}, 422, "max_tokens"),
    ({"max_completion_tokens": 0}, 422, "max_completion_tokens"),
    ({"temperature": -0.1}, 422, "temperature"),
    ({"temperature": 3}, 422, "temperature"),
    ({"temperature": float("nan")}, 422, "temperature"),
    ({"temperature": float("inf")}, 422, "temperature"),
    ({"temperature": "hot"}, 422, "temperature"),
    ({"seed": 2**64}, 422, "seed"),
    ({"background": "yes"}, 422, "background"),
    ({"background": 1}, 422, "background"),
    ({"priority": "urgent"}, 422, "priority"),
    ({"pace": "medium"}, 422, "pace"),
    ({"window_bytes": 10}, 422, "window_bytes"),
    ({"window_bytes": 10**9}, 422, "window_bytes"),
    ({"metadata": {"a": 1}}, 422, "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, 422, "metadata"),
    ({"metadata": {str(n): "x" for n in range(17)}}, 422, "metadata"),
    ({"metadata": {"a": "\ud800"}}, 422, "metadata"),
    ({"metadata": {"\ud800": "a"}}, 422, "metadata"),
    ({"user": "\udfff"}, 422, "user"),
    ({"stop": ["\ud83d"]}, 422, "stop"),
    ({"stop": 5}, 422, "stop"),
    ({"stop": [5]}, 422, "stop"),
    ({"tool_choice": 5}, 422, "tool_choice"),
    ({"max_token": 5}, 422, "max_token"),  # a misspelt limit is no limit
    ({"stream": True, "n": 3}, 422, None),
    ({"\ud800": 1}, 422, None),
    ({"": 1}, 422, None),
    ({"simulation": {"tokens": 0}}, 422, "simulation.tokens"),
    ({"simulation": {"tokens": -5}}, 422, "simulation.tokens"),
    ({"simulation": {"tokens": 10**9}}, 422, "simulation.tokens"),
    ({"simulation": {"tokens": "9"}}, 422, "simulation.tokens"),
    ({"simulation": {"tokens_per_second": -1}}, 422, "simulation.tokens_per_second"),
    ({"simulation": {"tokens_per_second": float("nan")}}, 422, "simulation.tokens_per_second"),
    ({"simulation": {"tokens_per_second": 10**400}}, 422, "simulation.tokens_per_second"),
    ({"simulation": {"seed": -1}}, 422, "simulation.seed"),
    ({"simulation": {"seed": 1.5}}, 422, "simulation.seed"),
    ({"simulation": {"token": 5}}, 422, "simulation.token"),
    ({"simulation": []}, 422, "simulation"),
    ({"simulation": "fast"}, 422, "simulation"),
]


@contextlib.contextmanager
def nothing_changes(house: House) -> Iterator[None]:
    """In this block no key and no job is made, and afterwards the node still serves."""

    def seen() -> tuple[set[str], tuple[object, ...]]:
        with admin(house.redis.url) as client:
            # A node under pressure says so in a key of its own.
            keys = {key for key in client.scan_iter() if "}:log" not in key and key != PRESSURE}
            return keys, (client.xlen(JOBS_INTERACTIVE), client.xlen(JOBS_BACKGROUND))

    keys, jobs = seen()
    yield
    keys_after, jobs_after = seen()
    assert keys_after <= keys  # what an earlier test made may have had its time
    assert jobs_after == jobs
    assert house.api.call("GET", "/readyz").status == 200


@pytest.mark.parametrize(("fields", "status", "param"), BAD_FIELDS, ids=lambda value: repr(value)[:50])
def test_a_bad_field(quiet: House, fields: dict[str, Any], status: int, param: str | None) -> None:
    """A value that may not be is refused by its field's name, and nothing is made."""
    body = {name: value for name, value in {**GOOD, **fields}.items() if value is not None or name == "model"}
    with nothing_changes(quiet):
        error = error_of(quiet.api.call("POST", "/v1/streams", body), status)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"7", 400),
        (b"\xff\xfe\x00", 400),
        (b'{"model": "simulated", "prompt": "x"} and more', 400),
        (b"{'model': 'simulated'}", 400),
        (b"[" * 100_000, 400),
        (b'{"model":' * 50_000, 400),
        (b'{"model": "simulated", "messages": ' + b"[" * 300 + b"]" * 300 + b"}", 422),
        (
            b'{"model": "simulated", "prompt": "x", "response_format": ' + b'{"a":' * 200 + b"1" + b"}" * 201,
            422,
        ),
        (b"{}", 422),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_body(quiet: House, body: bytes, status: int) -> None:
    """A body that is no JSON object is 400, one that lacks or holds the wrong thing 422; nothing is made."""
    with nothing_changes(quiet):
        answer = quiet.api.call("POST", "/v1/streams", body, {"Content-Type": "application/json"})
        error_of(answer, status)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", None]
)
def test_a_wrong_content_type(quiet: House, content_type: str | None) -> None:
    """JSON that does not say that it is JSON is 400, and the answer says what to send."""
    headers = {"Content-Type": content_type} if content_type else {}
    with nothing_changes(quiet):
        error = error_of(quiet.api.call("POST", "/v1/streams", json.dumps(GOOD).encode(), headers), 400)
    assert "application/json" in error["message"]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_bad_idempotency_key(quiet: House, key: str) -> None:
    """An Idempotency-Key without length, or too long to keep, is refused by name."""
    with nothing_changes(quiet):
        error = error_of(quiet.api.call("POST", "/v1/streams", GOOD, {"Idempotency-Key": key}), 422)
    assert error["param"] == "Idempotency-Key"


def _raw(port: int, data: bytes, *more: bytes) -> bytes:
    """Send bytes as they are, and read until the other side closes or answers whole."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        with contextlib.suppress(OSError):  # it may close before all is sent
            for part in (data, *more):
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(65_536):
                answer += part
                if b"}}" in answer:
                    break
        return answer


def test_a_body_that_says_it_is_too_large(quiet: House) -> None:
    """A Content-Length over the limit is 413 before a byte of the body is sent."""
    with nothing_changes(quiet):
        answer = _raw(
            quiet.api.port,
            b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % (BODY_MAX + 1),
        )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "too_large"


def test_a_body_that_turns_out_too_large(quiet: House) -> None:
    """A chunked body is counted as it comes, and 413 once it is over the limit."""
    head = b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    body = b" " * (BODY_MAX + 1)
    with nothing_changes(quiet):
        answer = _raw(
            quiet.api.port,
            head + b"Content-Type: application/json\r\n\r\n",
            b"%x\r\n%b\r\n" % (len(body), body),
        )
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"too_large"' in answer


def test_the_largest_body_is_taken(quiet: House) -> None:
    """A prompt of as much text as may be is taken: the limit on the body leaves room for it."""
    made = queued(quiet, prompt="x" * 262_144)
    quiet.api.call("DELETE", f"/v1/streams/{made['id']}")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/streams HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http(quiet: House, data: bytes) -> None:
    """Bytes that are no HTTP are answered by 400 or a closed connection, and the node still serves."""
    with nothing_changes(quiet):
        answer = _raw(quiet.api.port, data)
    assert not answer or re.match(rb"HTTP/1\.[01] 4\d\d", answer)


# --- bad reads


@pytest.mark.parametrize(
    "position",
    [
        "nonsense", "-1", "5", "5-", "-1-1", "1-1-1", "0x5-1", "5 -1", "+5-1", "5-1,6-1", "05-1", "5-01",
        "99999999999999999999-1", "5-9999999999", "1e3-1", "null", "5-1\u00a0", "*", "0", "$", "{}",
    ],
)  # fmt: skip
def test_a_position_that_is_none(quiet: House, position: str) -> None:
    """A Last-Event-ID or ?after= that is no position is 400, and not the start of the response."""
    made = queued(quiet)
    url = made["events_url"]
    error_of(quiet.api.call("GET", url, headers={"Last-Event-ID": position.encode()}), 400)  # type: ignore[dict-item]
    quoted = "".join(f"%{byte:02x}" for byte in position.encode())
    error_of(quiet.api.call("GET", f"{url}?after={quoted}"), 400)


def test_a_position_that_was_never_given(house: House) -> None:
    """A position inside a record, past the end, or of an epoch that never was, is 400 for that response."""
    made = finished(house.api)
    whole = Reader(house.api.port, made["events_url"]).run()
    ends = {offset(position) for position in whole.ids}
    inside = [at for at in range(1, whole.position) if at not in ends]
    epoch = whole.last_id.partition("-")[2]
    for at in (inside[0], inside[len(inside) // 2], inside[-1]):
        error_of(house.api.call("GET", made["events_url"], headers={"Last-Event-ID": f"{at}-{epoch}"}), 400)
    wrong = (f"{whole.position + 1}-{epoch}", f"100000000000000-{epoch}", f"{offset(whole.ids[0])}-2")
    for position in wrong:
        error = error_of(house.api.call("GET", made["events_url"], headers={"Last-Event-ID": position}), 400)
        assert error["code"] == "malformed_request"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("window=0", "window"), ("window=-1", "window"), ("window=255", "window"), ("window=x", "window"),
        ("window=", "window"), ("window=1e6", "window"), ("window=99999999999999999999", "window"),
        ("window=1000.5", "window"), ("consumer=", "consumer"), ("consumer=a%20b", "consumer"),
        ("consumer=" + "x" * 65, "consumer"), ("consumer=%00", "consumer"), ("consumer=..%2f..", "consumer"),
        ("consumer=%F0%9F%8C%8A", "consumer"), ("consumer=a%0ab", "consumer"), ("consumer=%ff", "consumer"),
    ],
)  # fmt: skip
def test_a_bad_query(quiet: House, query: str, param: str) -> None:
    """A consumer's name or window that may not be is 422 by its name, and no consumer is made."""
    made = queued(quiet)
    assert error_of(quiet.api.call("GET", f"{made['events_url']}?{query}"), 422)["param"] == param
    assert quiet.api.status(made["id"])["consumers"] == []


# --- bounds


def test_as_many_responses_as_may_be() -> None:
    """Over max_active a create is 429 with Retry-After and counted; when one ends there is room again."""
    with EmbeddedServer() as redis, Api(redis.url, max_active=3) as api:
        made = [api.create(tokens=2) for _ in range(3)]
        wait_until(lambda: api.call("POST", "/v1/streams", GOOD).status == 429, "a create is refused")
        for _ in range(5):  # who is refused is not counted among those who are there
            error = error_of(api.call("POST", "/v1/streams", GOOD), 429)
            assert error["code"] == "overloaded"
            assert error["message"].startswith("3 responses are queued or running")
        assert metric(api.port, "relay_shed_total") >= 1
        with Reader(api.port, made[0]["events_url"]) as reader:
            assert reader.started().status == 200  # readers are not refused
        with Worker(redis.url):
            for one in made:
                api.wait_status(one["id"], "completed")
            wait_until(lambda: api.call("POST", "/v1/streams", GOOD).status == 201, "there is room again")


def test_as_many_readers_as_may_be(house: House) -> None:
    """Over max_consumers a reader is 429 with Retry-After; another node takes it."""
    made = running(house.api)
    with Api(house.redis.url, max_consumers=2) as small:
        readers = [Reader(small.port, made["events_url"]).started() for _ in range(2)]
        with Reader(small.port, made["events_url"]) as refused:
            refused.until(lambda reader: reader.status, "an answer")
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
        with Reader(house.other.port, made["events_url"]) as elsewhere:
            assert elsewhere.until(lambda reader: reader.text, "some text").status == 200
        for reader in readers:
            reader.close()

        def there_is_room() -> bool:
            with Reader(small.port, made["events_url"]) as reader:
                return reader.started().status == 200

        wait_until(there_is_room, "there is room again")
    house.api.call("DELETE", f"/v1/streams/{made['id']}")


# --- operations


def test_health_and_readiness(house: House) -> None:
    """A node that serves says that it is alive and ready."""
    for path in ("/healthz", "/readyz"):
        answer = house.api.call("GET", path)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_metrics(house: House) -> None:
    """Every metric of the contract is there under its name and type, and none holds an id."""
    made = house.api.create(tokens=60, rate=200)
    reader = Reader(house.api.port, f"{made['events_url']}?consumer=my-secret-name").run()
    answer = house.api.call("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.body.decode()
    types = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    assert (
        types.items()
        >= {
            "relay_consumers": "gauge",
            "relay_consumer_lag_bytes": "histogram",
            "relay_consumer_lag_seconds": "histogram",
            "relay_consumer_lag_bytes_max": "gauge",
            "relay_consumer_lag_seconds_max": "gauge",
            "relay_delivery_seconds": "histogram",
            "relay_events_sent_total": "counter",
            "relay_bytes_sent_total": "counter",
            "relay_resumes_total": "counter",
            "relay_trims_repaired_total": "counter",
            "relay_gap_bytes_total": "counter",
            "relay_shed_total": "counter",
            "relay_pressure_level": "gauge",
            "relay_jobs_waiting": "gauge",
            "relay_jobs_oldest_seconds": "gauge",
            "relay_jobs_pending": "gauge",
            "relay_redis_memory_bytes": "gauge",
            "relay_redis_memory_budget_bytes": "gauge",
            "relay_redis_reconnects_total": "counter",
        }.items()
    )
    for state in ("live", "slow", "stalled", "detached"):
        assert f'relay_consumers{{state="{state}"}}' in text
    for source in ("log", "journal", "done"):
        assert f'relay_resumes_total{{source="{source}"}}' in text
    for event in ("start", "delta", "notice", "done", "error"):  # from the start: a rate sees the first
        assert f'relay_events_sent_total{{event="{event}"}}' in text
    assert metric(house.api.port, "relay_events_sent_total") >= len(reader.events)
    assert metric(house.api.port, "relay_delivery_seconds_count") >= 1
    assert metric(house.api.port, "relay_gap_bytes_total") == 0
    assert not re.search(r"rs_[0-9a-f]{6}|my-secret-name|c-[0-9a-f]{12}", text)


def test_consumers_are_counted_while_they_are_here(house: House) -> None:
    """The gauge of consumers follows them within a second or two, both ways."""
    made = running(house.api)
    wait_until(lambda: metric(house.other.port, "relay_consumers") == 0, "earlier ones are gone")
    with Reader(house.other.port, made["events_url"]) as reader:
        reader.started()
        wait_until(lambda: metric(house.other.port, "relay_consumers") == 1, "it is counted")
    wait_until(lambda: metric(house.other.port, "relay_consumers") == 0, "it is not counted any more")
    house.api.call("DELETE", f"/v1/streams/{made['id']}")


def test_a_drain(house: House) -> None:
    """SIGTERM: every reader is told when to come back and ended, the process ends with 0, nothing is lost."""
    with Api(house.redis.url) as leaving:
        made = running(house.api, rate=300, seed=41)
        readers = [Reader(leaving.port, made["events_url"]) for _ in range(5)]
        readers.append(Reader(leaving.port, f"{made['events_url']}?consumer=me&window=300"))
        for reader in readers:
            reader.until(lambda reader: reader.text, "some text")
        watch = Stopwatch()
        leaving.terminate()
        for reader in readers:
            reader.run()
            assert reader.ended  # the answer is whole: no proxy takes it for a broken one
            last = reader.events[-1]
            assert (last.name, last.id) == ("reconnect", None)
            assert 0 < last.data["retry_ms"] <= 10_000
        assert leaving.wait() == 0
        watch.within(8, "from SIGTERM to the end")
        assert "Traceback" not in leaving.stderr
    waits = {reader.events[-1].data["retry_ms"] for reader in readers}
    assert len(waits) > 1  # they do not come back in one moment
    stop(house.api, made)
    for reader in readers:
        resumed = Reader(house.other.port, made["events_url"], after=reader.last_id).run()
        assert resumed.exact(before=reader.text) == ""


def test_a_draining_node_is_not_ready(house: House) -> None:
    """From SIGTERM on, /readyz is 503 for those that are still connected, and never 200 again."""
    with (
        Api(house.redis.url) as leaving,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", leaving.port, timeout=5)) as connection,
    ):
        seen: list[int] = []
        with contextlib.suppress(OSError, http.client.HTTPException):
            while len(seen) < 10_000:
                connection.request("GET", "/readyz")
                answer = connection.getresponse()
                seen.append(answer.status)
                answer.read()
                if len(seen) == 20:
                    leaving.terminate()
        assert leaving.wait() == 0
    assert seen[:20] == [200] * 20
    assert set(seen) <= {200, 503}
    assert seen == sorted(seen)  # 200, then 503 for as long as the connection is open


def test_a_balancer_sees_that_a_node_goes(house: House) -> None:
    """For the drain delay new connections are told 503, creates too, and readers are served as before."""
    with Api(house.redis.url, drain_delay_s=5, drain_s=20) as leaving:
        made = running(house.api, rate=100)
        with Reader(leaving.port, made["events_url"]) as reader:
            reader.until(lambda reader: reader.text, "some text")
            started = time.monotonic()
            leaving.terminate()
            wait_until(lambda: leaving.call("GET", "/readyz").status == 503, "it is not ready", 4)
            error = error_of(leaving.call("POST", "/v1/streams", GOOD), 503)
            assert error["code"] == "draining"
            reader.drain().past(reader.position)
            assert not reader.named("reconnect")
            while time.monotonic() < started + 1.5:
                assert leaving.call("GET", "/readyz").status == 503
            reader.run()
            assert reader.events[-1].name == "reconnect"
            assert leaving.wait() == 0
            assert 5 <= time.monotonic() - started < 20
    stop(house.api, made)


def test_a_second_signal_does_not_wait_for_a_balancer(quiet: House) -> None:
    """Whoever presses Ctrl-C twice has seen enough."""
    with Api(quiet.redis.url, drain_s=60, drain_delay_s=30) as leaving:
        leaving.terminate()
        wait_until(lambda: leaving.call("GET", "/readyz").status == 503, "it is not ready", 15)
        leaving.terminate()
        assert leaving.wait() == 0


@pytest.mark.parametrize("part", ["node", "admission"])
async def test_readiness_while_draining(part: str) -> None:
    """The answer itself, without the race for the last moment of a connection: 503 and when to ask again."""
    parts = {name: SimpleNamespace(draining=name == part) for name in ("node", "admission")}
    app = SimpleNamespace(state=SimpleNamespace(relay=SimpleNamespace(**parts)))
    answer = await ready(Request({"type": "http", "app": app}))
    assert answer.status_code == 503
    assert json.loads(bytes(answer.body))["error"]["code"] == "draining"
    assert answer.headers["retry-after"]


def test_a_second_drain_is_no_crash(quiet: House) -> None:
    """SIGTERM twice, or SIGINT: the node ends with 0 all the same, without a trace."""
    for numbers in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)):
        with Api(quiet.redis.url) as leaving:
            for number in numbers:
                leaving.signal(number)
            assert leaving.wait() == 0
            assert "Traceback" not in leaving.stderr


# --- Redis


def _refuses_to_start(*args: str, **settings: object) -> str:
    """The one line of an API node that does not start, and exits with 1."""
    with Process("api", "--port", "0", *args, **settings) as process:
        assert process.wait() == 1, process.log
        assert process.stdout == ""
        (line,) = process.stderr.splitlines()
        return line


def test_no_redis_at_the_start() -> None:
    """Without Redis the process ends with one line that says where it looked."""
    port = free_port()
    assert f"127.0.0.1:{port}" in _refuses_to_start(redis_url=f"redis://127.0.0.1:{port}/0")


def test_settings_are_judged_before_redis() -> None:
    """A models file that is not there is told as such, with exit code 2, also where Redis is away."""
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    with Process("api", "--port", "0", redis_url=nowhere, models_file="/not/there.toml") as process:
        assert process.wait() == 2, process.log
        assert "RELAY_MODELS_FILE=/not/there.toml" in process.stderr


def test_a_redis_that_evicts() -> None:
    """A server that may delete running responses is refused, with what to set."""
    with EmbeddedServer(
        maxmemory_bytes=64 * 2**20, extra_args=["--maxmemory-policy", "allkeys-lru"]
    ) as redis:
        assert "noeviction" in _refuses_to_start(redis_url=redis.url)


async def test_a_redis_that_is_too_old() -> None:
    """A server without what we need is refused, with what to use instead."""

    def old(command: Command) -> bytes | None:
        word = command[0].upper()
        if word == b"INFO":
            return bulk(b"# Server\r\nredis_version:6.2.14\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n")
        return b"%0\r\n" if word == b"CONFIG" else polite(command)

    async with fake_redis(old) as redis:
        line = await asyncio.to_thread(_refuses_to_start, redis_url=redis.url)
    assert "6.2.14" in line
    assert "7.0" in line


def test_redis_goes_and_comes_back() -> None:
    """Without Redis calls are 503 with Retry-After; when it is back, so are they, and readers go on."""
    with EmbeddedServer(aof=True) as redis, Api(redis.url) as api, Worker(redis.url):
        made = api.create(tokens=600, rate=100, seed=51)
        reader = Reader(api.port, made["events_url"])
        reader.until(lambda reader: reader.text, "some text")
        redis.kill()
        calls = [
            ("GET", "/readyz"), ("POST", "/v1/streams"), ("GET", "/v1/streams"),
            ("GET", made["events_url"]), ("GET", made["text_url"]), ("DELETE", f"/v1/streams/{made['id']}"),
        ]  # fmt: skip
        with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
            answers = list(
                pool.map(lambda each: api.call(each[0], each[1], GOOD if each[0] == "POST" else None), calls)
            )
        for answer in answers:
            assert error_of(answer, 503)["code"] in {"unavailable", "connection_lost"}
        assert api.call("GET", "/healthz").status == 200
        redis.restart()
        wait_until(lambda: api.call("GET", "/readyz").status == 200, "it is ready again")
        assert api.create(tokens=1)["status"] == "queued"
        assert reader.run().exact() == ""
        assert metric(api.port, "relay_redis_reconnects_total") >= 1


def test_a_redis_that_hangs_is_no_redis() -> None:
    """Readiness waits 2 s for an answer, and not for the connection to be given up."""
    with EmbeddedServer() as redis, Api(redis.url) as api:
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            watch = Stopwatch()
            error = error_of(api.call("GET", "/readyz"), 503)
            took_s = watch.elapsed_s
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        assert error["code"] == "unavailable"
        watch.within(5, "the answer of /readyz", took_s)
        wait_until(lambda: api.call("GET", "/readyz").status == 200, "it is ready again")


# --- authentication

ROUTES = [
    ("POST", "/v1/streams"),
    ("GET", "/v1/streams"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    *_calls(NEVER_MADE),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer a-wrong-secret"}, {"Authorization": "Basic eDp5"}]
)
def test_every_call_needs_a_key(locked: Api, method: str, path: str, headers: dict[str, str]) -> None:
    """Without a key, or with a wrong one, every call but health is 401, before anything is looked up."""
    bodies = {"/v1/streams": GOOD, f"/v1/streams/{NEVER_MADE}/consumers/me/ack": {"position": 0}}
    answer = locked.call(method, path, bodies.get(path) if method == "POST" else None, headers)
    error = error_of(answer, 401)
    assert error["code"] == "unauthorized"
    assert error["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "alice" not in answer.body.decode()


def test_health_needs_no_key(locked: Api) -> None:
    """A load balancer has no key."""
    assert [locked.call("GET", path).status for path in ("/healthz", "/readyz")] == [200, 200]


def test_a_key_opens_what_it_made(locked: Api) -> None:
    """With its key a caller does everything; with another's it is 403 and sees nothing of it."""
    made = locked.create(tokens=20, headers=ALICE)
    assert Reader(locked.port, made["events_url"], headers=ALICE).run().exact() == ""
    for method, path in _calls(made["id"]):
        body = {"position": 0} if method == "POST" else None
        error = error_of(locked.call(method, path, body, BOB), 403)
        assert error["type"] == "permission_error"
    assert made["id"] not in locked.call("GET", "/v1/streams", headers=BOB).body.decode()
    assert made["id"] in locked.call("GET", "/v1/streams", headers=ALICE).body.decode()
    assert locked.call("GET", "/metrics", headers=BOB).status == 200


def test_idempotency_keys_are_each_caller_s_own(locked: Api) -> None:
    """Two callers that chose the same key have each their own response."""
    key = {"Idempotency-Key": "the same"}
    ids = {locked.create(tokens=1, headers={**who, **key})["id"] for who in (ALICE, BOB, ALICE)}
    assert len(ids) == 2


def test_a_token_opens_its_response_alone(locked: Api) -> None:
    """The token of a create, by ?token= or a cookie, opens that response, and nothing else."""
    mine, other = (locked.create(tokens=20, headers=ALICE) for _ in range(2))
    token = mine["token"]
    cookie = {"Cookie": f"theme=dark; relay_token={token}"}
    assert Reader(locked.port, f"{mine['events_url']}?token={token}").run().exact() == ""
    assert Reader(locked.port, mine["events_url"], headers=cookie).run().exact() == ""
    for path in (f"/v1/streams/{mine['id']}", mine["text_url"]):
        assert locked.call("GET", f"{path}?token={token}").status == 200
        assert locked.call("GET", path, headers=cookie).status == 200
        error_of(locked.call("GET", f"{path}?token={token}x"), 403)
    for method, path in _calls(other["id"]):
        body = {"position": 0} if method == "POST" else None
        error_of(locked.call(method, f"{path}?token={token}", body), 403)
        error_of(locked.call(method, path, body, cookie), 403)
    for method, path in ROUTES[:4]:
        error_of(locked.call(method, f"{path}?token={token}", GOOD if method == "POST" else None), 401)
    assert token not in locked.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_keys_only_loopback_is_served(house: House, host: str) -> None:
    """No keys and an address that others reach: refused at the start, in one line that says what to do."""
    with Process("api", "--port", "0", "--host", host, redis_url=house.redis.url) as process:
        assert process.wait() in {1, 2}
        (line,) = process.stderr.splitlines()
    assert "RELAY_API_KEYS" in line
    assert host in line


def test_with_keys_any_address_is_served(house: House) -> None:
    """Keys configured: an address that others reach is served."""
    with Api(house.redis.url, "--host", "0.0.0.0", api_keys="alice:alice-secret-1") as api:
        assert call(api.port, "GET", "/healthz").status == 200
        assert call(api.port, "GET", "/v1/streams").status == 401


# --- a client that is gone before it is served


def test_a_client_that_hangs_up_before_its_answer_leaves_nothing() -> None:
    """A reader that went away while Redis was slow is no consumer afterwards: nobody reads for it."""
    with EmbeddedServer() as redis, Api(redis.url) as api, Worker(redis.url):
        made = running(api)
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            reader = Reader(api.port, made["events_url"])
            assert api.call("GET", "/healthz").status == 200  # it has been read by now
            reader.close()
            assert [api.call("GET", "/healthz").status for _ in range(3)] == [200] * 3
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        wait_until(lambda: metric(api.port, "relay_stream_endings_total") >= 1, "it has ended")
        wait_until(lambda: api.status(made["id"])["consumers"] == [], "it is no consumer")
        assert "internal_error" not in api.stderr
