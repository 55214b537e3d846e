"""Redis goes, comes back, forgets, fails over, moves a slot: in the middle of answers, with real processes.

Nobody sees a duplicate or a hole: what a reader has is at all times the beginning of the answer, and its
digest is right at the end. What is truly gone is said within 5 s, and nobody waits for ever.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from redis import Redis

from relay import simulation
from relay.keys import keys_of
from tests.support.resharding import Move
from tests.support.stage import SHORT_LEASE
from tests.support.stopwatch import Stopwatch
from tests.support.system import Api, Reader, Worker, metric
from tests.support.topologies import Deployment, ManagedServer, deployed
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(240)

TOKENS, RATE = 480, 80  # an answer of six seconds
ENDLESS = 100_000  # tokens of one that is to be lost, and must not be over before
SAID_WITHIN_S = 5.0
EXACT_WITHIN_S = 60.0


class House:
    """A deployment with an API node and a worker, and answers that run."""

    def __init__(self, shape: str, stack: ExitStack, *, aof: bool = False, **settings: object) -> None:
        self.redis: Deployment = stack.enter_context(deployed(shape, aof=aof))
        self.api = stack.enter_context(Api(self.redis.url, **settings))
        self.worker = stack.enter_context(Worker(self.redis.url, **settings))
        self._stack = stack
        self.ids: list[str] = []
        self.readers: list[Reader] = []

    def answers(self, count: int, *, readers: int = 2, tokens: int = TOKENS) -> None:
        """So many answers, with so many readers each, all in the middle of their text."""
        for seed in range(count):
            made = self.api.create(tokens=tokens, rate=RATE, seed=seed)
            self.ids.append(made["id"])
            for _ in range(readers):
                reader = self._stack.enter_context(Reader(self.api.port, made["events_url"]))
                self.readers.append(reader.started())
        for reader in self.readers:
            reader.some(20)

    def primary(self) -> ManagedServer:
        """The server of the first answer."""
        return self.redis.primary_of(keys_of(self.ids[0]).log)

    def all_exact(self) -> None:
        """Every reader gets to the end, with the text and nothing else, and without having been cut off."""
        for index, reader in enumerate(self.readers):
            reader.run(EXACT_WITHIN_S)
            assert reader.exact() == ""
            assert reader.text == self._whole(index)
            assert not reader.named("rewind")

    def all_lost(self) -> None:
        """Every reader is told in time, and what it had was the beginning of the answer."""
        watch = Stopwatch()
        for index, reader in enumerate(self.readers):
            reader.run()
            assert reader.terminal is not None
            assert (reader.terminal.name, reader.terminal.data["code"]) == ("error", "stream_lost"), reader
            assert reader.taken_back
            assert self._whole(index, len(reader.taken_back)).startswith(reader.taken_back)
        watch.within(SAID_WITHIN_S, "from the loss to the word of it")

    def _whole(self, index: int, tokens: int = TOKENS) -> str:
        """The text of a reader's answer; a token has a character at least."""
        return simulation.text(index * len(self.ids) // len(self.readers), 0, tokens)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opened is closed after it."""
    with ExitStack() as opened:
        yield opened


def cut_off(primary: ManagedServer) -> None:
    """Its replicas hear nothing more: what is written from here on dies with it."""
    with primary.admin() as client:
        client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        client.client_kill_filter(_type="replica")


def wait_appended(reader: Reader, count: int) -> None:
    """Wait until so many more events have come."""
    reader.some(len(reader.events) + count)


# --- one server


def test_a_restart_with_its_data_costs_time_alone(stack: ExitStack) -> None:
    """kill -9, a second without Redis, and the append-only file brings everything back."""
    house = House("single", stack, aof=True)
    house.answers(3)
    server = house.primary()
    server.kill()
    wait_until(lambda: house.api.call("GET", "/readyz").status == 503, "the node says that Redis is away")
    server.restart()
    house.all_exact()


def test_a_restart_without_data_ends_every_answer(stack: ExitStack) -> None:
    """An empty server: the readers hear that their answers are gone, and new work is served at once."""
    house = House("single", stack)
    house.answers(3, tokens=ENDLESS)
    server = house.primary()
    server.kill()
    server.restart()
    house.all_lost()
    again = house.api.create(tokens=20, seed=9)
    assert Reader(house.api.port, again["events_url"]).run().exact() == ""


def test_a_flush_ends_every_answer(stack: ExitStack) -> None:
    """FLUSHALL in mid-answer, with every connection alive: nothing else tells of it."""
    house = House("single", stack)
    house.answers(3, tokens=ENDLESS)
    house.redis.flush()
    house.all_lost()
    wait_until(lambda: metric(house.worker.metrics_port, "relay_worker_responses") == 0, "the worker lets go")
    again = house.api.create(tokens=20, seed=9)
    assert Reader(house.api.port, again["events_url"]).run().exact() == ""


def test_a_paused_server_is_waited_for(stack: ExitStack) -> None:
    """CLIENT PAUSE: every command hangs for two seconds; nobody takes that for an end."""
    house = House("single", stack)
    house.answers(2)
    with house.primary().admin() as client:
        client.client_pause(2000)
    house.all_exact()


def test_a_stopped_server_is_waited_for(stack: ExitStack) -> None:
    """SIGSTOP for longer than a reply may take: the connections are dropped, and nobody says gone."""
    house = House("single", stack)
    house.answers(2)
    server = house.primary()
    server.pause()
    wait_until(lambda: house.api.call("GET", "/readyz").status != 200, "the node drops its connection")
    server.resume()
    house.all_exact()


def test_killed_connections_are_made_again(stack: ExitStack) -> None:
    """Every connection, five times: appends and reads that were in flight are neither lost nor doubled."""
    house = House("single", stack)
    house.answers(2)
    for _ in range(5):
        with house.primary().admin() as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
        wait_appended(house.readers[0], 3)
    house.all_exact()


# --- one key of an answer is broken


def _wrong_type(client: Redis, response_id: str) -> None:
    client.delete(keys_of(response_id).log)
    client.set(keys_of(response_id).log, "not a stream", ex=60)


def _no_journal(client: Redis, response_id: str) -> None:
    client.delete(keys_of(response_id).journal)


def _no_meta(client: Redis, response_id: str) -> None:
    client.delete(keys_of(response_id).meta)


@pytest.mark.parametrize("harm", [_wrong_type, _no_journal, _no_meta])
def test_an_answer_whose_keys_are_broken_is_ended(stack: ExitStack, harm: object) -> None:
    """Its readers hear that it is lost, its job leaves the queue, and its neighbour goes on."""
    house = House("single", stack, **SHORT_LEASE)
    house.answers(1, tokens=ENDLESS)
    other = house.api.create(tokens=TOKENS, rate=RATE, seed=7)
    with house.primary().admin() as client:
        harm(client, house.ids[0])  # type: ignore[operator]
        house.all_lost()
        assert Reader(house.api.port, other["events_url"]).run().exact() == ""
        wait_until(lambda: client.xlen("relay:jobs:interactive") == 0, "its job is done with")


# --- several servers


@pytest.mark.parametrize("shape", ["sentinel", "cluster"])
def test_a_failover_costs_time_alone(stack: ExitStack, shape: str) -> None:
    """kill -9 of a primary in mid-answer: its replica takes over, and everything goes on."""
    house = House(shape, stack)
    house.answers(6, readers=1)
    house.primary().kill()
    house.all_exact()


@pytest.mark.parametrize("shape", ["sentinel", "cluster"])
def test_a_failover_that_loses_the_last_second_is_made_good(stack: ExitStack, shape: str) -> None:
    """The replica heard nothing for a while: the worker sends what it lacks again, at the same offsets."""
    house = House(shape, stack)
    house.answers(6)
    primary = house.primary()
    cut_off(primary)
    wait_appended(house.readers[0], 40)
    primary.kill()
    house.all_exact()


def test_a_failover_while_redis_is_only_silent(stack: ExitStack) -> None:
    """SIGSTOP of the primary: the others replace it; when it comes back, nobody writes to it."""
    house = House("sentinel", stack)
    house.answers(4, readers=1)
    primary = house.primary()
    replica = house.redis.replica_of(primary)
    primary.pause()
    house.redis.wait_for_primary(replica)
    primary.resume()
    # For a moment both take writes, and what only the old one has is lost: its readers are told so.
    for index, reader in enumerate(house.readers):
        reader.run(EXACT_WITHIN_S)
        assert reader.terminal is not None
        assert reader.terminal.name == "done"
        assert reader.taken_back == house._whole(index)


# --- a slot that moves


def test_a_slot_moves_under_an_answer(stack: ExitStack) -> None:
    """MOVED and ASK, and the readers' subscriptions: the answer goes on at its new node, at every step."""
    house = House("cluster", stack)
    house.answers(1)
    reader = house.readers[0]
    move = Move(house.redis, keys_of(house.ids[0]).log)
    move.begin()
    wait_appended(reader, 10)
    move.keys()
    wait_appended(reader, 10)
    late = Reader(house.api.port, reader.path).started()
    move.end()
    house.all_exact()
    assert late.run(EXACT_WITHIN_S).exact() == ""
    assert house.primary() is move.target


def test_the_queue_moves(stack: ExitStack) -> None:
    """The slot of the interactive jobs goes to another node while a worker waits for one."""
    house = House("cluster", stack)
    move = Move(house.redis, "relay:jobs:interactive")
    move.begin()
    move.keys()
    move.end()
    house.answers(2, readers=1)
    house.all_exact()
