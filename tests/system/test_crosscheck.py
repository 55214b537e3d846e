"""Positions that Redis and a node do not agree on are counted and logged, and nothing else is."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from redis import Redis

from relay.embedded import EmbeddedServer
from relay.keys import keys_of
from tests.support.servers import admin
from tests.support.system import Api, Reader, Worker, metric
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

WITHIN_S = 60
RELAXED = {"abandon_after_s": 600, "pause_max_s": 600}


class Scene(NamedTuple):
    """A node, a response that stands still with some text, and the third party's client."""

    api: Api
    redis: Redis
    log: str
    made: dict[str, Any]

    def reader(self, stack: ExitStack, name: str, more: str = "") -> Reader:
        """A reader that has all there is."""
        reader = stack.enter_context(
            Reader(self.api.port, f"{self.made['events_url']}?consumer={name}{more}")
        )
        return reader.until(lambda reader: reader.text, "some text")

    def group(self, name: str) -> dict[str, Any]:
        """XINFO GROUPS of one consumer."""
        return next(one for one in self.redis.xinfo_groups(self.log) if one["name"] == name)

    def count(self, kind: str) -> int:
        """Disagreements of a kind so far."""
        text = self.api.call("GET", "/metrics").body.decode()
        found = re.search(rf'relay_position_disagreements_total{{kind="{kind}"}} ([0-9.]+)', text)
        assert found
        return int(float(found[1]))

    def lines(self) -> list[dict[str, Any]]:
        """What was logged of it."""
        lines = [json.loads(line) for line in self.api.stderr.splitlines()]
        return [line for line in lines if line["event"] == "positions_disagree"]


@pytest.fixture
def scene() -> Iterator[Scene]:
    """One token at once, and the next after any test."""
    with (
        EmbeddedServer() as server,
        Api(server.url, **RELAXED) as api,
        Worker(server.url, **RELAXED),
        admin(server.url) as redis,
    ):
        made = api.create(tokens=50, rate=0.01)
        yield Scene(api, redis, keys_of(made["id"]).log, made)


def test_healthy_readers_agree() -> None:
    """Fast, explicit, slow and many readers of one response, at work: many checks and no disagreement."""
    with EmbeddedServer() as server, Api(server.url) as api, Worker(server.url), ExitStack() as stack:
        made = [api.create(tokens=100_000, rate=100, seed=seed) for seed in range(4)]
        readers = [stack.enter_context(Reader(api.port, one["events_url"])) for one in made]
        readers += [stack.enter_context(Reader(api.port, made[0]["events_url"])) for _ in range(3)]
        slow = stack.enter_context(Reader(api.port, made[1]["events_url"], receive_buffer=4096, maxseg=1448))
        explicit = stack.enter_context(
            Reader(api.port, f"{made[2]['events_url']}?consumer=me&window=2000").started()
        )
        deadline, is_over = time.monotonic() + WITHIN_S, False
        while not all(reader.ended for reader in readers):
            if not is_over and metric(api.port, "relay_position_checks_total") >= 20:
                is_over = all(api.call("DELETE", f"/v1/streams/{one['id']}").status == 202 for one in made)
            assert time.monotonic() < deadline, metric(api.port, "relay_position_checks_total")
            for reader in readers:
                reader.pump(within_s=0.01)
            slow.pump(size=16, within_s=0.001)
            explicit.drain()
            if explicit.position:
                api.call(
                    "POST",
                    f"/v1/streams/{made[2]['id']}/consumers/me/ack",
                    {"position": explicit.position},
                )
        assert [reader.exact() for reader in readers] == [""] * len(readers)
        assert metric(api.port, "relay_position_disagreements_total") == 0


def test_somebody_else_acknowledges(scene: Scene) -> None:
    """XACK by a third party: Redis takes the client for further than it is."""
    with ExitStack() as stack:
        scene.reader(stack, "me", "&window=100000")

        def all_pending() -> list[Any]:  # the start and the text are one entry, or two
            found = scene.redis.xpending_range(scene.log, "me", "-", "+", 10)
            return found if len(found) == scene.redis.xlen(scene.log) else []

        pending = wait_until(all_pending, "all entries are pending")
        scene.redis.xack(scene.log, "me", pending[-1]["message_id"])
        kind = "pending" if len(pending) > 1 else "ahead"
        wait_until(lambda: scene.count(kind) == 1, "it is counted once", WITHIN_S)
        (line,) = scene.lines()
        assert (line["kind"], line["consumer"], line["response"]) == (kind, "me", scene.made["id"])
        assert line["redis"]["pending"] == line["ours"]["pending"] - 1


def test_somebody_else_moves_a_group(scene: Scene) -> None:
    """XGROUP SETID by a third party, past what the client has, and back to the start."""
    with ExitStack() as stack:
        for name in ("on", "back"):
            scene.reader(stack, name)
        head = scene.api.status(scene.made["id"])["position"]
        wait_until(
            lambda: all(
                (one["position"], one["lag_bytes"]) == (head, 0)
                for one in scene.api.status(scene.made["id"])["consumers"]
            ),
            "both have all there is",
        )
        scene.redis.xgroup_setid(scene.log, "on", f"{head + 5000}-0")
        scene.redis.xgroup_setid(scene.log, "back", "0-0")
        wait_until(lambda: scene.count("ahead") == 1, "one is too far", WITHIN_S)
        wait_until(lambda: scene.count("behind") == 1, "one is not far enough", WITHIN_S)
        checks = metric(scene.api.port, "relay_position_checks_total")
        wait_until(
            lambda: metric(scene.api.port, "relay_position_checks_total") > checks + 3,
            "it looks on",
            WITHIN_S,
        )
        assert (scene.count("ahead"), scene.count("behind"), scene.count("pending")) == (1, 1, 0)
        told = {line["kind"] for line in scene.lines()}
        assert told
        assert told <= {"ahead", "behind"}
