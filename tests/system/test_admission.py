"""Admission from outside: pressure on a whole deployment, caused for real, step by step and back.

Two nodes, one Redis. `memory` fills it with keys of the test's own; `crowd` has one worker slot, taken by a
long answer, and a queue behind it; `few` lets in few responses at once. What runs already never pays.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from relay.embedded import EmbeddedServer
from relay.keys import PRESSURE
from tests.support.servers import admin
from tests.support.stage import House
from tests.support.system import Answer, Api, Process, Reader, Worker, metric
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(240)

BUDGET = 64 * 1024 * 1024
LIMITED = 8
MODELS = """
[models.big]
source = "simulated"
fallback = "small"
[models.small]
source = "simulated"
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A models file with a fallback, and a low limit under pressure."""
    path = tmp_path_factory.mktemp("models") / "models.toml"
    path.write_text(MODELS)
    return {"models_file": path, "limited_tokens": LIMITED}


@pytest.fixture(scope="module", autouse=True)
def crowd(settings: dict[str, object]) -> Iterator[House]:
    """One slot for all, taken; a job waits behind it from the start of the module: it is old by then."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url, **settings) as api,
        Api(redis.url, **settings) as other,
        Worker(redis.url, concurrency=1, abandon_after_s=600, **settings),
    ):
        running = create(api, tokens=40_000, rate=20, metadata={"is": "running"})  # over half an hour
        api.wait_status(running["id"], "running")
        create(api, metadata={"is": "waiting"})
        yield House(redis, api, other)


def post(api: Api, tokens: int = 100, rate: float = 0, model: str = "big", **more: object) -> Answer:
    """The answer to a create."""
    simulation = {"tokens": tokens, "tokens_per_second": rate}
    return api.call("POST", "/v1/streams", {"model": model, "prompt": "x", "simulation": simulation, **more})


def create(api: Api, **more: Any) -> dict[str, Any]:
    """A response that is let in; the create's JSON."""
    answer = post(api, **more)
    assert answer.status == 201, answer
    made: dict[str, Any] = answer.json
    return made


def read(api: Api, made: dict[str, Any]) -> Reader:
    """The whole of a response, checked."""
    reader = Reader(api.port, made["events_url"]).run()
    assert reader.exact() == ""
    return reader


def refused(api: Api, reason: str, **more: Any) -> int:
    """A create is refused with 429, counted under this reason; its Retry-After."""
    before = shed(api, reason)
    answer = post(api, **more)
    assert answer.status == 429, answer
    assert answer.json["error"]["code"] == "overloaded"
    assert answer.json["error"]["type"] == "rate_limit_error"
    assert shed(api, reason) == before + 1
    after = answer.headers["retry-after"]
    assert re.fullmatch(r"[1-9][0-9]?", after)
    assert 1 <= int(after) <= 30
    return int(after)


def shed(api: Api, reason: str) -> int:
    """How many this node has refused for a reason."""
    found = re.search(rf'relay_shed_total{{reason="{reason}"}} ([0-9.e+]+)', exposition(api))
    assert found, reason
    return int(float(found[1]))


def exposition(api: Api) -> str:
    """A node's metrics."""
    return api.call("GET", "/metrics").body.decode()


def logged(process: Process, event: str) -> list[dict[str, Any]]:
    """The log lines of one event."""
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    return [line for line in lines if line["event"] == event]


def level_of(api: Api) -> float:
    """The pressure as a node sees it."""
    return metric(api.port, "relay_pressure_level")


def steps_from(api: Api, level: int) -> set[int]:
    """The levels to which a node has gone from this one."""
    return {step["pressure"] for step in logged(api, "pressure") if step["before"] == level} - {level}


def wait_level(house: House, level: int, within_s: float = 60) -> None:
    """Both nodes come to this level, and are there together."""
    nodes = house.api, house.other
    wait_until(lambda: all(level_of(api) == level for api in nodes), f"level {level}", within_s)


def fill(redis: EmbeddedServer, share: float) -> None:
    """Fill Redis up or down to this share of the budget, with keys of the test's own, 256 KiB each."""
    piece = 256 * 1024
    with admin(redis.url) as client:

        def used() -> int:
            return int(client.info("memory")["used_memory"])

        count = len(list(client.scan_iter("ballast:*", count=1000)))
        while used() < share * BUDGET:
            client.set(f"ballast:{count}", b"x" * piece, ex=600)
            count += 1
        while used() > share * BUDGET + piece and count:
            count -= 1
            client.delete(f"ballast:{count}")


def test_memory_step_by_step_and_back(settings: dict[str, object]) -> None:
    """Less, then smaller, then nothing new; what runs goes on at each step, and after it all is as before."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url, memory_budget_bytes=BUDGET, **settings) as api,
        Api(redis.url, memory_budget_bytes=BUDGET, **settings) as other,
        Worker(redis.url, abandon_after_s=600, **settings),
    ):
        house = House(redis, api, other)
        old, long = create(api, tokens=440, rate=20), create(api, tokens=40_000, rate=20)
        with Reader(api.port, old["events_url"]) as running, Reader(other.port, long["events_url"]) as longer:
            for reader in (running, longer):
                reader.until(lambda reader: reader.text, "the running answer has begun")
            _level_0(house)
            fill(redis, 0.72)
            wait_level(house, 1)
            _level_1(house)
            fill(redis, 0.77)
            wait_level(house, 2)
            _level_2(house)
            fill(redis, 0.85)
            wait_level(house, 3)
            longer.drain().past(longer.position)
            _level_3(house)
            fill(redis, 0.63)  # over the mark at which level 1 is left, under the one at which it is entered
            wait_level(house, 1)
            _level_1(house)
            fill(redis, 0.2)
            wait_level(house, 0)
            _level_0(house)
            running.run(within_s=60)
        assert running.exact() == ""
        assert not {"limited", "fallback", "shortened"} & {*running.notices, *longer.notices}
        assert running.terminal is not None
        assert running.terminal.data["usage"]["completion_tokens"] == 440
        _told(house)


def _level_0(house: House) -> None:
    """Nothing is taken from anybody."""
    reader = read(house.api, create(house.other, degrade=False))
    assert reader.notices == []
    assert reader.terminal is not None
    assert reader.terminal.data["usage"]["completion_tokens"] == 100


def _level_1(house: House) -> None:
    """The limit on tokens is lowered, for those who ask for more and do not mind; background is taken."""
    for api in (house.api, house.other):
        made = create(api, max_tokens=90)
        assert made["model"] == "big"
        reader = read(api, made)
        (notice,) = reader.named("notice")
        assert notice.id is not None  # a record like any other
        assert (notice.data["kind"], notice.data["level"]) == ("limited", 1)
        assert str(LIMITED) in notice.data["reason"]
        assert "memory" in notice.data["reason"]
        assert reader.terminal is not None
        assert reader.terminal.data["finish_reason"] == "length"
        assert reader.terminal.data["usage"]["completion_tokens"] == LIMITED
        refused(api, "degrade", degrade=False)
        assert read(api, create(api, degrade=False, max_tokens=LIMITED)).notices == []
    assert read(house.api, create(house.api, background=True)).notices == ["limited"]


def _level_2(house: House) -> None:
    """Also the fallback answers, who has none is only limited, and background work is refused."""
    for api in (house.api, house.other):
        made = create(api)
        assert made["model"] == "small"
        reader = read(api, made)
        assert reader.notices == ["limited", "fallback"]
        assert {notice.data["level"] for notice in reader.named("notice")} == {2}
        assert reader.named("start")[0].data["model"] == "small"
        assert api.status(made["id"])["model"] == "small"
        assert read(api, create(api, model="small")).notices == ["limited"]
        refused(api, "degrade", degrade=False, max_tokens=LIMITED)  # the fallback alone would degrade it
        refused(api, "background", background=True)
        refused(api, "background", priority="background", model="small", max_tokens=1)


def _level_3(house: House) -> None:
    """Everything new is refused, whatever it is; readers of what there is are not."""
    waits = [
        refused(api, "memory", **kind)
        for api in (house.api, house.other)
        for kind in ({}, {"max_tokens": 1}, {"degrade": False}, {"background": True}) * 3
    ]
    assert set(waits) <= {1, 2, 3}  # nobody waits in the queue
    assert len(set(waits)) > 1  # they do not come back together
    with Api(house.redis.url) as late:  # without a budget of its own: it is told by the others
        wait_until(
            lambda: post(late, model="simulated").status == 429, "a node that has just started agrees", 20
        )


def _told(house: House) -> None:
    """Each step was logged and counted."""
    for api in (house.api, house.other):
        steps = logged(api, "pressure")
        assert {step["pressure"] for step in steps} == {0, 1, 2, 3}
        assert {step["reason"] for step in steps} == {"memory", "none"}
        assert steps[-1]["pressure"] == 0
        assert {line["kind"] for line in logged(api, "degraded")} == {"limited", "fallback"}
        told: dict[str, int] = {}
        for line in logged(api, "shed"):
            told[line["reason"]] = told.get(line["reason"], 0) + line["refused"]
        assert told.keys() == {"degrade", "background", "memory"}
        assert all(count <= shed(api, reason) for reason, count in told.items())
        text = exposition(api)
        for step in ("limited", "fallback"):
            assert re.search(rf'relay_degraded_total{{step="{step}"}} [1-9]', text)
        assert metric(api.port, "relay_redis_memory_budget_bytes") == BUDGET


def test_as_many_as_may_be(settings: dict[str, object]) -> None:
    """Near the limit on active responses less is taken, and at it nothing; when they end, everything."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url, max_active=20, **settings) as api,
        Api(redis.url, max_active=20, **settings) as other,
        Worker(redis.url, abandon_after_s=600, **settings),
    ):
        house = House(redis, api, other)
        rate = 0.02  # also the few tokens that are left of the last ones take minutes
        made = [create(api, tokens=5000, rate=rate) for _ in range(17)]
        wait_level(house, 1)
        made += [create(other, tokens=5000, rate=rate, model="small") for _ in range(2)]
        wait_level(house, 2)
        made.append(create(api, tokens=5000, rate=rate))
        assert made[-1]["model"] == "small"
        wait_until(lambda: post(other).status == 429, "one too many is refused")
        wait_level(house, 3)
        refused(api, "active")
        for one in made:
            assert api.call("DELETE", f"/v1/streams/{one['id']}").status == 202
        assert post(api, degrade=False).status == 429  # it is let go step by step
        wait_until(lambda: level_of(api) < 3, "there is room again")
        notices = read(api, create(api)).notices
        assert notices == ["limited", "fallback"] or level_of(api) < 2  # the next step came meanwhile
        assert steps_from(api, 3) == {2}


def test_a_queue_that_nobody_takes_from(crowd: House, settings: dict[str, object]) -> None:
    """A job that waits is pressure by its age: at 15 s all are refused, for about that long."""
    wait_level(crowd, 3)
    oldest = "relay_jobs_oldest_seconds"
    wait_until(lambda: metric(crowd.api.port, oldest) >= 15, "this node sees it too")
    waited_s = metric(crowd.api.port, oldest)
    waits = [refused(crowd.api, "queue") for _ in range(12)]
    assert min(waits) >= min(0.7 * waited_s, 20)
    assert len(set(waits)) > 2
    newest = {one["metadata"]["is"]: one for one in crowd.api.call("GET", "/v1/streams").json["data"]}
    with admin(crowd.redis.url) as client:
        wait_until(lambda: client.get(PRESSURE) == "3 queue", "a node leaves its level for the others")
    # Who runs goes on: its reader has new text now.
    with Reader(crowd.other.port, f"/v1/streams/{newest['running']['id']}/events") as reader:
        reader.until(lambda reader: reader.text, "what there is")
        reader.drain().past(reader.position)
    # Somebody takes the job: the cause is gone, and a step later so is the refusal.
    with Worker(crowd.redis.url, **settings):
        waiting = read(crowd.api, {"events_url": f"/v1/streams/{newest['waiting']['id']}/events"})
        assert waiting.notices == []
        nodes = (crowd.api, crowd.other)  # each by its own look, half a second apart
        wait_until(lambda: all(level_of(node) < 3 for node in nodes), "a step down")
        made = create(crowd.other)
        assert made["model"] == "small" or level_of(crowd.other) < 2  # the next step came meanwhile
        assert steps_from(crowd.other, 3) == {2}
