"""API nodes that are killed, drained and replaced, with real processes: readers lose nothing by it."""

import asyncio
import contextlib
import http.client
import resource
import selectors
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from relay.client import Client, Delta, Done, Failed, Reconnect, Stream
from relay.errors import RelayError
from tests.support.front import Front, front
from tests.support.stage import SHORT_LEASE, Stage, text_of
from tests.support.stopwatch import Stopwatch
from tests.support.system import Api, Process, Reader, Worker, metric
from tests.support.wait import wait_until_async

pytestmark = pytest.mark.timeout(300)

READERS, STALLED = 1000, 50
GONE_WITHIN_S = 10.0
LATEST_S = 60.0  # on a machine that has no CPU for it


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the machine allows: a thousand readers are over the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < READERS + 500:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a thousand raw readers


def pump_all(readers: list[Reader], reached: Callable[[Reader], object], within_s: float) -> None:
    """Read all of them side by side until `reached` is true of each."""
    deadline = time.monotonic() + within_s
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            if not reached(reader):
                selector.register(reader._socket, selectors.EVENT_READ, reader)
        while selector.get_map():
            left = deadline - time.monotonic()
            assert left > 0, f"{len(selector.get_map())} readers are not there after {within_s:g} s"
            for key, _ in selector.select(left):
                reader = key.data
                selector.unregister(key.fileobj)
                reader.pump(within_s=0)
                if not reached(reader):
                    assert not reader.ended, reader
                    assert not reader.closed, reader
                    selector.register(reader._socket, selectors.EVENT_READ, reader)


def leave_until_unready(port: int, leave: Callable[[], None]) -> None:
    """From `leave` on /readyz is soon not 200, on a connection that was there before."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:

        def ready() -> bool:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            answer.read()
            return answer.status == 200

        assert ready()
        watch = Stopwatch()
        leave()
        with contextlib.suppress(OSError, http.client.HTTPException):
            while ready():
                assert watch.elapsed_s < LATEST_S
        watch.within(1.0, "from SIGTERM to /readyz")


@pytest.mark.usefixtures("many_files")
def test_a_node_with_a_thousand_readers_is_gone_within_ten_seconds(scene: Stage) -> None:
    """Each is told when to come back and has a whole answer; also those that read nothing hold nobody up."""
    leaving, staying = scene.api(), scene.api()
    scene.worker(**SHORT_LEASE)
    made = [leaving.create(tokens=50_000, rate=2, seed=seed) for seed in range(20)]
    readers = [scene.reader(leaving, made[index % 20]) for index in range(READERS)]
    stalled = [scene.reader(leaving, made[0], receive_buffer=4096, maxseg=1448) for _ in range(STALLED)]
    pump_all(readers, lambda reader: reader.text, within_s=LATEST_S)
    watch = Stopwatch()
    leave_until_unready(leaving.port, leaving.terminate)
    pump_all(readers, lambda reader: reader.ended, within_s=LATEST_S)
    ended_s = watch.elapsed_s
    assert leaving.wait(LATEST_S) == 0
    gone_s = watch.elapsed_s
    watch.within(GONE_WITHIN_S, "from SIGTERM to the end", gone_s)
    assert "Traceback" not in leaving.stderr
    for reader in readers:
        last = reader.events[-1]
        assert (last.name, last.id) == ("reconnect", None)
        assert 0 < last.data["retry_ms"] <= 10_000
    waits = {reader.events[-1].data["retry_ms"] for reader in readers}
    assert len(waits) > READERS / 4  # they do not come back in one moment
    for one in made:
        staying.call("DELETE", f"/v1/streams/{one['id']}")
    for reader, one in zip(readers[:20], made, strict=True):
        rest = scene.reader(staying, one, after=reader.last_id).run()
        assert rest.exact(before=reader.text) == ""
    for reader in stalled:
        reader.close()
    print(f"all told after {ended_s:.2f} s, gone after {gone_s:.2f} s")


# --- readers with the shipped client


class Read(NamedTuple):
    """What a reader with the client has seen, start to end."""

    text: str
    done: Done | None
    failed: Failed | None
    reconnects: int
    connections: int


async def read(stream: Stream, seen: Callable[[str], None] = lambda _text: None) -> Read:
    """Read a stream to its end, as an application would."""
    text, reconnects, done, failed = "", 0, None, None
    async with stream:
        async for event in stream:
            match event:
                case Delta(channel="content"):
                    text += event.text
                    seen(text)
                case Reconnect():
                    reconnects += 1
                case Done():
                    done = event
                case Failed():
                    failed = event
                case _:
                    pass
    return Read(text, done, failed, reconnects, stream.connections)


class Crowd:
    """Readers with the client, each of a response of its own, through a balancer."""

    def __init__(self, client: Client, api: Api, count: int, tokens: int, rate: float) -> None:
        self.tokens = tokens
        made = [api.create(tokens=tokens, rate=rate, seed=seed) for seed in range(count)]
        self.sizes = [0] * count
        # Every other one acks explicitly what it has dealt with.
        streams = [client.stream(one["id"], window=2048 if at % 2 else None) for at, one in enumerate(made)]
        self.tasks = [
            asyncio.create_task(read(stream, lambda text, at=at: self._saw(at, text)))  # type: ignore[misc]
            for at, stream in enumerate(streams)
        ]

    def _saw(self, at: int, text: str) -> None:
        self.sizes[at] = len(text)

    async def all_read(self) -> None:
        """Wait until each has some text."""
        await wait_until_async(lambda: min(self.sizes) > 0, "every reader has some text", LATEST_S)

    async def exact(self) -> list[Read]:
        """All of them at their end, each with the exact text, verified."""
        found = await asyncio.gather(*self.tasks)
        for seed, one in enumerate(found):
            assert one.failed is None
            assert one.text == text_of(seed, self.tokens)
            assert one.done is not None
            assert one.done.verified
        return found


def readers_of(node: Api) -> float:
    """How many readers a node has now."""
    return metric(node.port, "relay_consumers")


async def test_a_killed_node_costs_its_readers_one_reconnect(scene: Stage) -> None:
    """kill -9 of one of three: those that it served connect once more, the others notice nothing."""
    nodes = [scene.api() for _ in range(3)]
    scene.worker(**SHORT_LEASE)
    async with front(*(node.port for node in nodes)) as line, Client(line.url) as client:
        crowd = Crowd(client, nodes[0], 60, tokens=600, rate=50)
        await crowd.all_read()
        await wait_until_async(lambda: sum(map(readers_of, nodes)) == 60, "all are counted")
        cut = readers_of(nodes[1])
        nodes[1].kill()
        found = await crowd.exact()
    assert {one.connections for one in found} == {1, 2}
    assert sum(one.connections == 2 for one in found) == cut > 0
    assert sum(one.reconnects for one in found) == 0  # it had no time to say so


async def test_every_node_killed_in_turn(scene: Stage) -> None:
    """Also when nobody is there for a while: readers wait, and go on where they were."""
    nodes = [scene.api(), scene.api()]
    scene.worker(abandon_after_s=60, **SHORT_LEASE)
    async with front(*(node.port for node in nodes)) as line, Client(line.url) as client:
        crowd = Crowd(client, nodes[0], 20, tokens=400, rate=50)
        await crowd.all_read()
        for node in nodes:
            node.kill()
        last = await asyncio.to_thread(scene.api)
        line.ports = [last.port]
        await crowd.exact()


async def test_a_drained_node_s_readers_see_nothing(scene: Stage) -> None:
    """They lose nothing and see no error: the client is told to go, and goes."""
    nodes = [scene.api(), scene.api()]
    scene.worker(**SHORT_LEASE)
    async with front(*(node.port for node in nodes)) as line, Client(line.url) as client:
        crowd = Crowd(client, nodes[0], 40, tokens=600, rate=50)
        await crowd.all_read()
        await wait_until_async(lambda: sum(map(readers_of, nodes)) == 40, "all are counted")
        told = readers_of(nodes[0])
        nodes[0].terminate()
        assert await asyncio.to_thread(nodes[0].wait, LATEST_S) == 0
        found = await crowd.exact()
    assert sum(one.reconnects for one in found) >= told > 0
    assert all(one.connections <= 1 + one.reconnects + 1 for one in found)


# --- everything is replaced


class Load:
    """Creates and reads responses without end, many at once; every error of a reader is kept."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = asyncio.Event()
        self.read: list[Read] = []
        self.errors: list[str] = []

    async def run(self, lanes: int, tokens: int, rate: float) -> None:
        """Until `stop`, then to the end of what runs."""
        async with asyncio.TaskGroup() as tasks:
            for lane in range(lanes):
                tasks.create_task(self._lane(lane, tokens, rate))

    def stop(self) -> None:
        """Begin nothing new."""
        self._stop.set()

    async def _lane(self, lane: int, tokens: int, rate: float) -> None:
        turn = 0
        while not self._stop.is_set():
            seed = lane * 1000 + turn
            turn += 1
            try:
                response_id = await self._create(seed, tokens, rate)
                found = await read(self._client.stream(response_id))
            except RelayError as error:
                self.errors.append(f"{seed}: {type(error).__name__}: {error}")
                continue
            self.read.append(found)
            if found.failed is not None:
                self.errors.append(f"{seed}: {found.failed}")
            elif found.text != text_of(seed, tokens) or found.done is None or not found.done.verified:
                self.errors.append(f"{seed}: another text")

    async def _create(self, seed: int, tokens: int, rate: float) -> str:
        """A create may be repeated where it has an idempotency key: a node that drains refuses it."""
        body = {"model": "simulated", "prompt": "Say it."}
        simulation = {"tokens": tokens, "tokens_per_second": rate, "seed": seed}
        deadline = time.monotonic() + LATEST_S
        while True:
            try:
                made = await self._client.create(
                    idempotency_key=f"seed-{seed}", simulation=simulation, **body
                )
            except RelayError as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                return made.id


async def replace(scene: Stage, line: Front, nodes: list[Api], at: int) -> None:
    """Start the next node, then drain the one before it, as a rolling update does."""
    old = nodes[at]
    nodes[at] = await asyncio.to_thread(scene.api)
    line.ports = [node.port for node in nodes]
    await leave(old)


async def leave(old: Process) -> None:
    """SIGTERM, and a clean end."""
    old.terminate()
    assert await asyncio.to_thread(old.wait, LATEST_S) == 0, old.log


async def test_a_rolling_restart_of_everything_reaches_no_reader(scene: Stage) -> None:
    """All nodes and all workers, one after the other, under load: not one error, every text verified."""
    settings: dict[str, Any] = {**SHORT_LEASE, "worker_drain_s": 1}
    nodes = [scene.api(), scene.api()]
    workers: list[Worker] = [scene.worker(**settings) for _ in range(2)]
    async with (
        front(*(node.port for node in nodes)) as line,
        Client(line.url) as client,
        asyncio.TaskGroup() as tasks,
    ):
        load = Load(client)
        tasks.create_task(load.run(40, tokens=200, rate=50))
        await wait_until_async(lambda: len(load.read) >= 40, "the load runs", LATEST_S)
        for at in range(2):
            await replace(scene, line, nodes, at)
            old, workers[at] = workers[at], await asyncio.to_thread(lambda: scene.worker(**settings))
            await leave(old)
        load.stop()
    assert load.errors == []
    assert len(load.read) > 80
    reconnects = sum(one.reconnects for one in load.read)
    assert reconnects > 10
    print(f"{len(load.read)} responses read, {reconnects} reconnects, no error")
