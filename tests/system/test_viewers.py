"""Many viewers of one response on one node, with real processes: each exact, and one read for all of them."""

import time
from collections.abc import Iterable
from contextlib import ExitStack

import pytest
from redis import Redis

from tests.support.servers import admin
from tests.support.stage import Stage
from tests.support.system import Api, Reader, metric

pytestmark = pytest.mark.timeout(300)

BRISK, STALLED, LATE, RESUMING, PROCESSORS = 25, 5, 10, 5, 5
VIEWERS = BRISK + STALLED + LATE + RESUMING + PROCESSORS
TOKENS, RATE = 1000, 100  # so many appends, also where a busy system makes few large ones
WITHIN_S = 100.0


def reads_so_far(client: Redis) -> int:
    """How many commands that read a response's log or journal Redis has run."""
    stats = client.info("commandstats")
    names = ("cmdstat_xreadgroup", "cmdstat_xrange", "cmdstat_getrange")
    return sum(stats[name]["calls"] for name in names if name in stats)


class Processor:
    """A viewer with explicit acks: it confirms half of its window at a time."""

    window = 1024

    def __init__(self, api: Api, events_url: str, name: str) -> None:
        self._api = api
        self._ack_url = f"{events_url.removesuffix('/events')}/consumers/{name}/ack"
        self.reader = Reader(api.port, f"{events_url}?consumer={name}&window={self.window}")
        self._acked = 0

    def drain(self) -> None:
        """Take what is there, and say so."""
        self.reader.drain()
        if self.reader.position - self._acked >= self.window // 2:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Confirm all that is there."""
        self._acked = self.reader.position
        assert self._api.call("POST", self._ack_url, {"position": self._acked}).status == 204

    @property
    def ended(self) -> bool:
        """Whether its answer has ended."""
        return self.reader.ended


def drain_until_ended(readers: Iterable[Reader | Processor]) -> None:
    """Take everything from all of them, in turn."""
    rest, deadline = list(readers), time.monotonic() + WITHIN_S
    while rest:
        assert time.monotonic() < deadline, f"not ended: {rest}"
        for each in rest:
            each.drain()
        rest = [each for each in rest if not each.ended]


def test_fifty_viewers_are_exact_and_cost_one_read_an_append(scene: Stage) -> None:
    """Brisk, stalled, late, resuming and windowed ones: all get all of it, by a few reads an append."""
    api, worker = scene.api(), scene.worker()
    made = api.create(tokens=TOKENS, rate=RATE)
    url = made["events_url"]
    with ExitStack() as stack, admin(scene.redis.url) as client:

        def readers(count: int, **how: object) -> list[Reader]:
            return [stack.enter_context(Reader(api.port, url, **how)) for _ in range(count)]  # type: ignore[arg-type]

        brisk, stalled = readers(BRISK), readers(STALLED, receive_buffer=4096, maxseg=1448)
        processors = [Processor(api, url, f"p{number}") for number in range(PROCESSORS)]
        for each in processors:
            stack.enter_context(each.reader)
        for reader in (*brisk, *stalled):
            reader.started()
        began_s, before = time.monotonic(), reads_so_far(client)
        brisk[0].some(60)
        have = brisk[0].text
        late, resuming = readers(LATE), readers(RESUMING, after=brisk[0].last_id)
        drain_until_ended((*brisk, *late, *resuming, *processors))
        drain_until_ended(stalled)
        took_s, reads = time.monotonic() - began_s, reads_so_far(client) - before
        appends = metric(worker.metrics_port, "relay_appends_total")

    for reader in (*brisk, *stalled, *late, *(each.reader for each in processors)):
        assert reader.exact() == ""
    assert {reader.exact(before=have) for reader in resuming} == {""}
    # Each consumer says once a second that it is there, and reads its history once when it comes.
    beside = VIEWERS * (took_s + 2)
    assert appends > 100
    assert reads < 2 * appends + beside, f"{reads} reads of {appends} appends in {took_s:.1f} s"


def test_a_stalled_viewer_is_seen_with_its_lag_and_disturbs_nobody(scene: Stage) -> None:
    """Of two viewers one confirms nothing: Redis knows how far each is, and the other gets all of it."""
    api = scene.api()
    scene.worker()
    made = api.create(tokens=1500)
    processor = Processor(api, made["events_url"], "stalled")
    with processor.reader as stalled:
        stalled.started()
        assert Reader(api.port, f"{made['events_url']}?consumer=brisk").run().exact() == ""
        told = api.status(made["id"])
        (where,) = (each for each in told["consumers"] if each["id"] == "stalled")
        assert (where["position"], where["lag_bytes"]) == (0, told["position"])
        deadline = time.monotonic() + WITHIN_S
        while not stalled.ended:
            assert time.monotonic() < deadline, stalled
            processor.drain()
        assert stalled.exact() == ""
