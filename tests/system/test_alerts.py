"""Alerts made to fire by the real fault, on a real Prometheus; its rules are 30 times as fast as in use.

That they do not fire without a fault, and recover, is promtool's part: ops/prometheus/tests.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from relay.embedded import EmbeddedServer
from relay.events import Channel, Record, decode, encode
from relay.keys import keys_of
from tests.support.prometheus import Prometheus
from tests.support.servers import admin
from tests.support.system import Api, Reader, Worker, call, metric
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(400)

FASTER = 30
FIRES_WITHIN_S = 90
SETTINGS: dict[str, Any] = {
    "lease_s": 1.5,
    "lease_renew_s": 0.5,
    "window_bytes": 8192,
    "pause_max_s": 1,
    "max_response_bytes": 65_536,
}


class Scene:
    """A deployment that is well: one node, one worker, Prometheus on both."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack = stack
        self.redis = stack.enter_context(EmbeddedServer())
        self.api = stack.enter_context(Api(self.redis.url, **SETTINGS))
        self.workers = [self.new_worker()]
        targets = {"relay-api": [self.api.port], "relay-worker": [self.workers[0].metrics_port]}
        self.prometheus = stack.enter_context(Prometheus(folder, targets, FASTER).running())
        wait_until(lambda: self.prometheus.values("up") == [1.0, 1.0], "both are scraped", 60)

    def new_worker(self, concurrency: int = 64, **settings: Any) -> Worker:
        """One more, not yet scraped."""
        settings = {**SETTINGS, **settings}
        return self.stack.enter_context(Worker(self.redis.url, concurrency=concurrency, **settings))

    def add(self, worker: Worker) -> None:
        """Scrape it too."""
        self.workers.append(worker)
        self.prometheus.scrape("relay-worker", [worker.metrics_port for worker in self.workers])
        wait_until(
            lambda: len(self.prometheus.values("relay_worker_slots")) == len(self.workers), "it is seen"
        )

    def leave(self, worker: Worker) -> None:
        """It is scraped no longer, as is what a deploy has replaced."""
        self.workers.remove(worker)
        self.prometheus.scrape("relay-worker", [worker.metrics_port for worker in self.workers])

    def reader(self, tokens: int, rate: float, **options: Any) -> Reader:
        """Somebody who reads a new response."""
        made = self.api.create(tokens=tokens, rate=rate)
        return self.stack.enter_context(Reader(self.api.port, made["events_url"], **options))

    @contextmanager
    def fires(self, *names: str) -> Iterator[None]:
        """None of these fires before the block, which is the fault; at its end, wait for all of them."""
        self.wait_for_none_of(*names)
        yield
        self.wait_for(*names)

    def wait_for_none_of(self, *names: str) -> None:
        """Wait until none of these fires."""
        wait_until(lambda: not set(names) & self.prometheus.firing, f"{names} do not fire", FIRES_WITHIN_S)

    def wait_for(self, *names: str) -> None:
        """Wait until all of these fire."""
        wait_until(lambda: set(names) <= self.prometheus.firing, f"{names} fire", FIRES_WITHIN_S)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One for all faults; each test leaves it well."""
    with ExitStack() as stack:
        made = Scene(stack, tmp_path_factory.mktemp("prometheus"))
        wait_until(lambda: made.prometheus.firing == set(), "all is well", 60)
        yield made


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_somebody_lets_redis_evict(scene: Scene) -> None:
    """CONFIG SET maxmemory-policy."""
    with admin(scene.redis.url) as redis:
        with scene.fires("RelayRedisEvicts"):
            redis.config_set("maxmemory-policy", "allkeys-lru")
        redis.config_set("maxmemory-policy", "noeviction")


def stands_at_the_end(status: dict[str, Any]) -> bool:
    """Whether the only reader has confirmed all, and its group says so."""
    return [consumer["position"] for consumer in status["consumers"]] == [status["position"]]


def test_somebody_moves_a_reader_s_group(scene: Scene) -> None:
    """XGROUP SETID by a third party."""
    made = scene.api.create(tokens=50, rate=0.01)
    path = f"{made['events_url']}?consumer=me"
    with Reader(scene.api.port, path) as reader, admin(scene.redis.url) as redis:
        reader.until(lambda reader: reader.text, "some text")
        wait_until(lambda: stands_at_the_end(scene.api.status(made["id"])), "the node has told Redis of it")
        with scene.fires("RelayPositionsDisagree"):
            redis.xgroup_setid(keys_of(made["id"]).log, "me", "900000-0")


def test_somebody_changes_a_journal(scene: Scene) -> None:
    """A record of content becomes one of reasoning: its text is missing, whatever the positions say."""
    made = scene.api.create(tokens=50, rate=0)
    keys = keys_of(made["id"])
    scene.api.wait_status(made["id"], "completed")
    with closing(Redis.from_url(scene.redis.url)) as redis:  # bytes, where `admin` gives text
        data = redis.get(keys.journal)
        assert isinstance(data, bytes)
        placed, _ = decode(data)
        end, record = next(item for item in placed if item.record.channel is Channel.CONTENT)
        as_reasoning = encode(Record(Channel.REASONING, record.payload))
        redis.setrange(keys.journal, end - len(as_reasoning), as_reasoning)
    with scene.fires("RelayGapBytes"):
        reader = Reader(scene.api.port, made["events_url"]).run()
    assert reader.exact() != ""


def test_answers_fill_their_journals(scene: Scene) -> None:
    """They end at the bound of a response."""
    with scene.fires("RelayJournalNearBound"):
        scene.reader(50_000, 0).run()


def test_readers_take_nothing(scene: Scene) -> None:
    """They stand behind, and their answers are shortened."""
    with scene.fires("RelayLagHigh", "RelayAnswersShortened"):
        readers = [scene.reader(20_000, 0, receive_buffer=4096, maxseg=1448).started() for _ in range(3)]
    for reader in readers:
        reader.close()


def test_redis_is_away_while_a_source_is_paused(scene: Scene) -> None:
    """No pause ends in an outage."""
    name = "RelaySourcePausedTooLong"
    scene.wait_for_none_of(name)

    def is_paused() -> bool:
        return metric(scene.workers[0].metrics_port, "relay_paused_seconds_max") > 0

    for _ in range(20):  # a pause lasts for half a second, and may be over before Redis is
        reader = scene.reader(20_000, 0, receive_buffer=4096, maxseg=1448).started()
        with contextlib.suppress(AssertionError):
            wait_until(is_paused, "it is paused", 3)
        with stopped(scene.redis.pid):
            if is_paused():
                scene.wait_for(name)
                break
        reader.close()
    else:
        pytest.fail("no source was paused when Redis went")
    reader.close()


def test_a_worker_is_asked_to_go_while_redis_is_away(scene: Scene) -> None:
    """It can neither finish nor hand over, and gives up after its drain time and a lease."""
    worker = scene.new_worker(worker_drain_s=1, lease_s=14, lease_renew_s=2)
    scene.add(worker)
    readers = []
    while not metric(worker.metrics_port, "relay_worker_responses"):
        readers.append(scene.reader(3000, 50).some(3))
    with stopped(scene.redis.pid), scene.fires("RelayNodeDrainsTooLong"):
        worker.terminate()
    assert worker.wait() == 0
    scene.leave(worker)
    for reader in readers:
        assert reader.terminal is None
        reader.close()


def test_redis_is_full(scene: Scene) -> None:
    """maxmemory below what is used: appends are refused, and so is new work."""
    names = ("RelayRedisMemoryHigh", "RelayRedisMemoryFull", "RelayRedisRefusesWrites", "RelayShedding")
    body = {"model": "simulated", "prompt": "x", "simulation": {"tokens": 1}}
    reader = scene.reader(5000, 50).some(3)
    with admin(scene.redis.url) as redis:
        with scene.fires(*names):
            redis.config_set("maxmemory", redis.info("memory")["used_memory"] // 2)

            def refused() -> bool:
                call(scene.api.port, "POST", "/v1/streams", body)
                return set(names) <= scene.prometheus.firing

            wait_until(refused, "all four fire", FIRES_WITHIN_S)
        redis.config_set("maxmemory", 0)
    reader.close()
    wait_until(
        lambda: metric(scene.api.port, "relay_pressure_level") == 0, "the pressure is gone", FIRES_WITHIN_S
    )


def test_a_worker_stands_still_past_its_lease(scene: Scene) -> None:
    """Another takes its jobs, and the fence refuses what it writes when it comes back."""
    readers = [scene.reader(3000, 50).some(3) for _ in range(12)]
    first = scene.workers[0]
    scene.add(scene.new_worker())
    missing = "RelayScrapeMissing", "RelayReclaimStorm"
    scene.wait_for_none_of(*missing)  # before it is stopped, from when on they may fire at any time
    with scene.fires("RelayFencedWrites"), stopped(first.pid):
        taken = "relay_jobs_reclaimed_total"
        wait_until(lambda: metric(scene.workers[1].metrics_port, taken) >= 11, "its jobs are taken")
        scene.wait_for(*missing)
    for reader in readers:
        assert reader.terminal is None
        reader.close()


def test_somebody_flushes_redis(scene: Scene) -> None:
    """FLUSHALL while responses are read: their readers are told, and the budget of completion burns."""
    readers = [scene.reader(3000, 50).some(3) for _ in range(3)]
    # Left in turn: it burns fast while they are told, and slowly for as long as that weighs.
    told = scene.fires("RelayStreamsLost", "RelayBudgetBurnsFast")
    with scene.fires("RelayBudgetBurns"), told, admin(scene.redis.url) as redis:
        redis.flushall()
        for reader in readers:
            reader.run()


def test_there_is_no_worker_and_then_a_small_one(scene: Scene) -> None:
    """Jobs wait; when they are taken, one by one, their first tokens are late."""
    with scene.fires("RelayFirstTokenSlow"):
        with scene.fires("RelayNoWorkers", "RelayQueueWait", "RelayScrapeMissing"):
            while scene.workers:
                scene.workers.pop().kill()
            for _ in range(8):
                scene.reader(100, 50)
        scene.add(scene.new_worker(concurrency=1))
