"""Resuming, with real processes: on any node, at any time, from the log or from the journal, exactly."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from relay.client import Client, Delta, Done, Event, Failed, Rewind
from relay.keys import keys_of
from tests.support.front import front
from tests.support.servers import admin
from tests.support.stage import SHORT_LEASE, Stage, ask, has_text, models_file, text_of
from tests.support.system import Api, Reader, metric
from tests.support.upstream import Call, answer, chunk
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

SHORT_LOG = {"log_entries": 16}


def had_at(reader: Reader, position: str) -> str:
    """The content that a reader had at one of its ids."""
    text = ""
    for event in reader.events:
        text += event.data["text"] if event.name == "delta" else ""
        if event.id == position:
            return text
    raise AssertionError(f"never had {position}")


def resumes(api: Api, source: str) -> float:
    """How often a node served a resume from there."""
    told = api.call("GET", "/metrics").body.decode()
    line = f'relay_resumes_total{{source="{source}"}} '
    return sum(float(one.removeprefix(line)) for one in told.splitlines() if one.startswith(line))


def consumer(api: Api, response_id: str, name: str) -> dict[str, object]:
    """One consumer, as the status tells of it; empty while there is none."""
    found = [one for one in api.status(response_id)["consumers"] if one["id"] == name]
    return found[0] if found else {}


def deltas(reader: Reader, after: int, up_to: int = 1 << 30) -> int:
    """How many deltas ended between two positions."""
    ends = [int((event.id or "0").partition("-")[0]) for event in reader.named("delta")]
    return sum(after < end <= up_to for end in ends)


def ack(api: Api, response_id: str, name: str, position: str) -> None:
    """Confirm for a consumer with explicit acks, and wait until that is known."""
    path = f"/v1/streams/{response_id}/consumers/{name}/ack"
    assert api.call("POST", path, {"position": position}).status == 204
    offset = int(position.partition("-")[0])
    wait_until(lambda: consumer(api, response_id, name).get("position") == offset, "it is confirmed")


# --- with an id


def test_from_the_log_and_from_the_journal_on_any_node(scene: Stage) -> None:
    """The log was trimmed behind the reader: what it lacks is the journal's; and at the end there is 204."""
    with admin(
        scene.redis.url
    ) as client:  # a log is cut by whole nodes: small ones, however few entries come
        client.config_set("stream-node-max-entries", 8)
    nodes = [scene.api(), scene.api()]
    worker = scene.worker(**SHORT_LOG)
    made = nodes[0].create(tokens=600, rate=80, seed=31)
    cut = scene.reader(nodes[0], made).until(has_text(100), "some text")
    cut.close()
    fresh = scene.reader(nodes[0], made)
    with Redis.from_url(scene.redis.url) as client:

        def is_trimmed(_: Reader) -> bool:
            first = client.xrange(keys_of(made["id"]).log, count=1)[0][0]
            return int(first.partition(b"-")[0]) > cut.position

        fresh.until(is_trimmed, "the log no longer has what the first one lacks")
    old = scene.reader(nodes[1], made, after=cut.last_id)
    new = scene.reader(nodes[1], made, after=fresh.last_id)
    for one, before in ((old, cut.text), (new, had_at(fresh, fresh.last_id))):
        assert one.run().exact(before=before) == ""
        assert before + one.text == text_of(31, 600)
    assert fresh.run().exact() == ""
    assert resumes(nodes[1], "journal") >= 1
    done = fresh.last_id
    worker.kill()
    for node in nodes:
        assert scene.reader(node, made, after=done).run().status == 204
        # And before the end, for as long as it is kept: the rest, whoever asks where.
        assert scene.reader(node, made, after=cut.last_id).run().exact(before=cut.text) == ""
    assert resumes(nodes[1], "done") == 1


def test_one_that_comes_late_has_all_in_few_frames_and_then_live(scene: Stage) -> None:
    """Two hundred tokens that were made one by one come in a handful of events; none is missed or twice."""
    nodes = [scene.api(), scene.api()]
    scene.worker(**SHORT_LOG)
    made = nodes[0].create(tokens=700, rate=100, seed=32)
    early = scene.reader(nodes[0], made).until(has_text(1100), "about two hundred tokens")
    late = scene.reader(nodes[1], made).started()
    history, live_from = early.position, early.drain().position + 100  # bytes: where the late one is live
    for one in (early, late):
        assert one.run().exact() == ""
        assert one.text == text_of(32, 700)
    assert deltas(late, 0, history) * 4 < deltas(early, 0, history)
    assert deltas(late, live_from) * 2 > deltas(early, live_from) > 10


# --- without an id, by name


def test_a_name_goes_on_at_what_it_confirmed_though_its_node_was_killed(scene: Stage) -> None:
    """Nobody detached it: what was read for it and not confirmed is pending, and is given again."""
    nodes = [scene.api(), scene.api()]
    scene.worker(**SHORT_LEASE)
    made = nodes[0].create(tokens=700, rate=80, seed=33)
    named = {**made, "events_url": f"{made['events_url']}?consumer=phone"}
    windowed = {**made, "events_url": f"{made['events_url']}?consumer=phone&window=100000"}
    first = scene.reader(nodes[0], windowed).until(has_text(300), "some text")
    confirmed = first.ids[len(first.ids) // 2]
    ack(nodes[1], made["id"], "phone", confirmed)
    first.until(has_text(len(first.text) + 100), "more, unconfirmed")
    nodes[0].kill()
    second = scene.reader(nodes[1], named)
    second.run()
    assert second.exact(before=had_at(first, confirmed)) == ""
    assert had_at(first, confirmed) + second.text == text_of(33, 700)
    with Redis.from_url(scene.redis.url) as client:
        log = keys_of(made["id"]).log
        wait_until(lambda: client.xpending(log, "phone")["pending"] == 0, "all is confirmed")
    assert scene.reader(nodes[1], named).run().status == 204


def test_of_one_name_the_newer_connection_wins_on_any_node(scene: Stage) -> None:
    """The older is told so, once and for good; the newer has all that the older had not confirmed."""
    nodes = [scene.api(), scene.api()]
    scene.worker(**SHORT_LEASE)
    made = nodes[0].create(tokens=700, rate=80, seed=34)
    named = {**made, "events_url": f"{made['events_url']}?consumer=tab"}
    windowed = {**made, "events_url": f"{made['events_url']}?consumer=tab&window=100000"}
    older = scene.reader(nodes[0], windowed).until(has_text(200), "some text")
    confirmed = older.ids[len(older.ids) // 2]
    ack(nodes[0], made["id"], "tab", confirmed)
    newer = scene.reader(nodes[1], named).started()
    older.run()
    last = older.events[-1]
    assert (last.name, last.id, last.data["code"], last.data["retryable"]) == (
        "error", None, "superseded", False,
    )  # fmt: skip
    assert older.ended
    newer.run()
    assert newer.exact(before=had_at(older, confirmed)) == ""
    assert had_at(older, confirmed) + newer.text == text_of(34, 700)


async def test_a_client_that_was_replaced_does_not_come_back(scene: Stage) -> None:
    """Two tabs with one name would drive each other out for ever: the older one ends, typed."""
    node = scene.api()
    scene.worker(**SHORT_LEASE)
    made = node.create(tokens=700, rate=80, seed=35)
    async with front(node.port) as line, Client(line.url) as client:
        older, newer = (client.stream(made["id"], consumer="tab") for _ in range(2))
        seen: list[Event] = [await anext(older)]
        reading = asyncio.create_task(_all(newer))
        seen += await _all(older)
        rest = await asyncio.wait_for(reading, 60)
    assert isinstance(seen[-1], Failed)
    assert (seen[-1].code, seen[-1].retryable) == ("superseded", False)
    assert older.connections == 1
    assert newer.connections == 1
    assert isinstance(rest[-1], Done)
    text = "".join(event.text for event in rest if isinstance(event, Delta))
    assert text_of(35, 700).endswith(text)


async def _all(stream: object) -> list[Event]:
    return [event async for event in stream]  # type: ignore[attr-defined]


# --- a position of an epoch that was overruled


async def endless(call: Call) -> None:
    """A word, and another, until the client goes."""
    await call.head()
    for number in range(100_000):
        await call.event(chunk(f" w{number}"))
        await asyncio.sleep(0.01)


def replica_of(client: Redis, response_id: str) -> dict[str, Any]:
    """A response as it is now, groups included: what a replica has that hears nothing more from here on.

    Its `end` is where the text ends.
    """
    keys = keys_of(response_id)
    with client.pipeline(transaction=True) as pipeline:
        for key in (keys.meta, keys.journal, keys.log):
            pipeline.dump(key)
        pipeline.strlen(keys.journal)
        found: list[Any] = pipeline.execute()
    return dict(zip((keys.meta, keys.journal, keys.log, "end"), found, strict=True))


def fail_over(client: Redis, replica: dict[str, Any]) -> None:
    """That replica takes over: what came after it is lost, and every connection breaks."""
    with client.pipeline(transaction=True) as pipeline:
        for key, dump in replica.items():
            if key != "end":
                pipeline.restore(key, 600_000, dump, replace=True)
        pipeline.execute()
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)


def returned(scene: Stage, api: Api, made: dict[str, Any], after: str) -> Reader:
    """A reader that comes back, as often as it is told to come again; nothing else is an answer."""

    def answered() -> Reader | None:
        reader = scene.reader(api, made, after=after)
        reader.until(lambda reader: reader.status, "an answer")
        assert reader.status in {200, 503}, reader
        return reader if reader.status == 200 else None

    found = wait_until(answered, "it is let in")
    assert found is not None
    return found


def test_lost_text_is_taken_back_for_whoever_has_it(scene: Stage, tmp_path: Path) -> None:
    """A failover lost what two readers had, and its worker with it: other text follows, and each is told.

    One was connected all the time, alone or beside others on its node; one had gone and comes back.
    """
    upstream = scene.upstream(endless, answer(" and", " so", " it", " ended."))
    file = models_file(tmp_path, upstream, continues="true")
    nodes = [scene.api(models_file=file) for _ in range(2)]
    worker = scene.worker(models_file=file, **SHORT_LEASE)
    made = ask(nodes[0])
    live = [scene.reader(nodes[0], made), scene.reader(nodes[1], made), scene.reader(nodes[1], made)]
    for one in live:
        one.until(has_text(400), "some text")
    gone = scene.reader(nodes[1], made).until(has_text(400), "some text")
    with Redis.from_url(scene.redis.url) as client:
        replica = replica_of(client, made["id"])
        end = replica["end"]
        for one in [*live, gone]:
            one.until(lambda reader: reader.position > end + 300, "what will be lost")
        gone.close()
        worker.kill()
        fail_over(client, replica)
    scene.worker(models_file=file, **SHORT_LEASE)
    back = returned(scene, nodes[0], made, gone.last_id)
    for one in [*live, back]:
        one.run()
    text = nodes[0].call("GET", made["text_url"]).body.decode()
    assert text.endswith(" and so it ended.")
    for one in live:
        assert [int(event.data["position"].partition("-")[0]) for event in one.named("rewind")] == [end]
        assert one.taken_back == text
        assert one.terminal is not None
        assert one.terminal.name == "done"
    assert back.events[0].name == "rewind"
    gone.events += back.events
    assert gone.taken_back == text


async def test_the_client_goes_back_by_itself(scene: Stage, tmp_path: Path) -> None:
    """It yields a `Rewind` with the position from which other text follows, and verifies the whole."""
    upstream = scene.upstream(endless, answer(" and", " so", " it", " ended."))
    file = models_file(tmp_path, upstream, continues="true")
    node, worker = scene.api(models_file=file), scene.worker(models_file=file, **SHORT_LEASE)
    made = ask(node)
    had: list[tuple[int, str]] = []
    rewinds = 0
    replica: dict[str, Any] = {}
    async with front(node.port) as line, Client(line.url) as client:
        async for event in client.stream(made["id"]):
            if isinstance(event, Delta):
                had.append((event.position.offset, event.text))
            elif isinstance(event, Rewind):
                rewinds += 1
                had = [one for one in had if one[0] <= event.position.offset]
            if worker.code is None and event.position.offset > 400:
                with Redis.from_url(scene.redis.url) as redis:
                    replica = replica or replica_of(redis, made["id"])
                    if event.position.offset > replica["end"] + 300:  # which the client has, and will be lost
                        worker.kill()
                        fail_over(redis, replica)
                        await asyncio.to_thread(lambda: scene.worker(models_file=file, **SHORT_LEASE))
        text = await client.text(made["id"])
    assert isinstance(event, Done)
    assert event.verified
    assert rewinds == 1
    assert "".join(text for _, text in had) == text
    assert metric(node.port, "relay_gap_bytes_total") == 0
