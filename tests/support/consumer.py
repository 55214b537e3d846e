"""A consumer's surroundings, faked: a client's socket, a loop without time, a wire to one response.

Everything moves only when a test says so, which is what it takes to try the races:

    rig = Rig()
    rig.begin()
    rig.append("one ", "two ")      # an entry of two records; its ring is on the way
    rig.wire.deliver()              # the ring arrives, the consumer asks
    rig.wire.execute()              # the server answers; the reply is on the way
    rig.append("three ")            # and meanwhile ...
    rig.settle()                    # all arrives, the client takes everything, timers run
    assert rig.received == "one two three "

Replies and rings leave the server on one connection, in order, as they do in truth.
"""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import orjson

from api.ledger import Credit
from api.metrics import Metrics
from api.node import Node
from api.protocol import ClientSocket
from api.stream import Consumer
from relay.events import Channel, Placed, Record, content, decode, encode, event
from relay.journal import Journal
from relay.keys import keys_of
from relay.position import Position
from relay.scripts import Attached
from relay.settings import Settings
from relay.sse import Event, Parser
from relay.topology import Topology
from tests.support.fake_loop import FakeLoop
from tests.support.fake_server import FakeServer, FakeWire

ID = "rs_000000000000000000000001"
QUIET_TURNS = 4  # of a tenth of a second: longer than the longest of the consumer's own timers


def offset_of(got: Event) -> int:
    """The offset of an event's id; 0 for an event without one."""
    return int((got.id or "0").partition("-")[0])


class FakeSocket:
    """`ClientSocket` without a socket: the test decides what the client's kernel has acknowledged."""

    def __init__(self) -> None:
        self.data = b""  # what was written, without the chunks' framing
        self.written = 0  # with it
        self.taken = 0  # of `written`
        self._chunks: list[tuple[int, int]] = []  # where each chunk's data begins in the output, and its size
        self._on_lost: Callable[[], None] | None = None
        self._is_lost = False

    def write(self, data: bytes) -> None:
        """One chunk."""
        self.data += data
        self._chunks.append((self.written + len(b"%x\r\n" % len(data)), len(data)))
        self.written += len(b"%x\r\n%b\r\n" % (len(data), data))

    def outstanding(self) -> int:
        """What the client has not taken."""
        return self.written - self.taken

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Who is told of the end."""
        self._on_lost = callback
        if self._is_lost:
            callback()

    def lose(self) -> None:
        """The client hangs up."""
        self._is_lost = True
        if self._on_lost is not None:
            self._on_lost()

    def times(self) -> None:
        """What the kernel knows of a real client, and nobody of this one."""

    def take(self, size: int | None = None) -> None:
        """The client's kernel acknowledges `size` bytes more, or all."""
        self.taken = self.written if size is None else min(self.written, self.taken + size)

    @property
    def taken_data(self) -> bytes:
        """What the client has of `data`."""
        return self.data[: sum(max(0, min(size, self.taken - start)) for start, size in self._chunks)]

    def as_client(self) -> ClientSocket:
        """Itself, for the type checker."""
        return cast("ClientSocket", self)

    @property
    def events(self) -> list[Event]:
        """What an EventSource makes of it."""
        return Parser().feed(self.data)

    @property
    def ids(self) -> list[int]:
        """The offsets of the ids that were written."""
        return [offset_of(got) for got in self.events if got.id is not None]

    @property
    def taken_offset(self) -> int:
        """The offset up to which the client has whole events."""
        return max(map(offset_of, Parser().feed(self.taken_data)), default=0)

    @property
    def text(self) -> str:
        """The content of the deltas."""
        return "".join(orjson.loads(got.data)["text"] for got in self.events if got.event == "delta")


def a_node(loop: FakeLoop, metrics: Metrics, keepalive_s: float = 15.0) -> Node:
    """As much of a node as a consumer asks."""
    node = SimpleNamespace(
        loop=loop,
        metrics=metrics,
        settings=SimpleNamespace(keepalive_s=keepalive_s),
        topology=SimpleNamespace(server_time=lambda: 0.0),
        supersede=Node.supersede,
    )
    return cast("Node", node)


class Response:
    """One response on a fake server, and the wire to it: what every reader's surroundings begin with."""

    def __init__(self, loop: "FakeLoop | asyncio.AbstractEventLoop") -> None:
        self.server = FakeServer()
        self.wire = FakeWire(self.server, loop)
        self.metrics = Metrics()
        self.journal = Journal(self.wire.as_wire(), ID)

    def append(self, *texts: str, ring: bool = True) -> None:
        """One entry, a content record for each text."""
        self.append_records(*map(content, texts), ring=ring)

    def append_records(self, *records: Record, ring: bool = True) -> None:
        """One entry of these records."""
        self.server.append(b"".join(map(encode, records)))
        if ring:
            self.wire.push(b"%d" % len(self.server.journal))

    def finish(self) -> None:
        """The terminal record."""
        self.server.status = b"completed"
        self.append_records(event(Channel.DONE, {"finish_reason": "stop"}))

    def another_worker(self) -> None:
        """A new epoch begins at the head."""
        self.server.starts.append(len(self.server.journal))
        self.server.epoch += 1

    def trim(self, count: int) -> None:
        """The cap bites: the oldest entries leave the log."""
        del self.server.log[:count]

    @property
    def placed(self) -> list[Placed]:
        """Every record of the response."""
        return decode(self.server.journal)[0]

    def text_from(self, offset: int) -> str:
        """The content after an offset."""
        records = [item.record for item in self.placed if item.end > offset]
        return "".join(item.payload.decode() for item in records if item.channel is Channel.CONTENT)


class Stage(Response):
    """A response on a loop without time, where nothing moves but by the test."""

    settle_steps = 1000  # no test needs more: one that does not end is a consumer that spins

    def __init__(self) -> None:
        self.loop = FakeLoop()
        super().__init__(self.loop)

    def listen(self, ring: Callable[[int], None]) -> None:
        """Pass on what the bell says of the head."""
        bell = keys_of(ID).bell
        self.wire.subscribe(bell, lambda message: ring(int(message)) if message.isdigit() else None)

    def turn(self) -> None:
        """A tenth of a second, as the node's sweep gives it."""
        raise NotImplementedError

    def sweep(self) -> None:
        """The node's visit, once a second."""
        raise NotImplementedError

    def rest(self, take: Callable[[], None]) -> None:
        """Let everything come to rest: replies, timers, and clients that `take`."""
        quiet = 0
        for _ in range(self.settle_steps):
            take()
            moved = self.wire.execute() + self.wire.deliver()
            quiet = 0 if moved else quiet + 1
            if quiet == QUIET_TURNS:
                return
            if not moved:
                self.turn()
        raise AssertionError("what reads does not come to rest")


class Rig(Stage):
    """One consumer between a fake server and a fake client."""

    def __init__(
        self, *, size: int = 16_384, entries: int = 64, explicit: bool = False, keepalive_s: float = 15.0
    ) -> None:
        super().__init__()
        self.socket = FakeSocket()
        self.consumer = Consumer(
            a_node(self.loop, self.metrics, keepalive_s),
            self.journal,
            name="c",
            connection="k",
            socket=self.socket.as_client(),
            credit=Credit(size, entries, explicit),
            keep=True,
        )
        self.listen(self.consumer.ring)

    @property
    def made(self) -> str:
        """The content of the response."""
        return self.text_from(0)

    def attach(self, position: Position | None = None) -> Attached:
        """What the node's attach would give."""
        return self.server.attach("c", "k", position, self.consumer.outlet.credit.size)

    def begin(self, position: Position | None = None) -> None:
        """Attach and start."""
        self.consumer.begin(self.attach(position))

    @property
    def received(self) -> str:
        """The content that was written to the client's socket."""
        return self.socket.text

    @property
    def ids(self) -> list[int]:
        """The offsets of the ids that were written."""
        return self.socket.ids

    def turn(self) -> None:
        """A tenth of a second, as the node's sweep gives it."""
        self.loop.advance(0.1)
        self.consumer.step()
        self.loop.run()

    def sweep(self) -> None:
        """The node's visit, once a second."""
        self.consumer.sweep()
        self.loop.run()

    def settle(self, *, take: bool = True) -> None:
        """Let everything come to rest, and (with `take`) a client that takes all."""
        self.rest(self.socket.take if take else lambda: None)


class Served(Response):
    """A node with its consumers, between a fake server and fake clients; on the test's own loop."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(asyncio.get_running_loop())
        topology = SimpleNamespace(
            on_change=lambda callback: self.wire.on_reconnect(lambda: callback(lambda _key: True)),
            server_time=lambda: 0.0,
        )
        self.node = Node(Settings(**settings), cast("Topology", topology), self.metrics)

    async def attach(
        self, name: str | None = None, position: Position | None = None, window: int | None = None
    ) -> tuple[Consumer, FakeSocket]:
        """A new connection, begun."""
        socket = FakeSocket()
        consumer, attached = await self.node.attach(
            self.journal, socket.as_client(), name=name, position=position, window=window
        )
        consumer.begin(attached)
        return consumer, socket

    async def settle(self, *sockets: FakeSocket) -> None:
        """Everything arrives, and these clients take what they are sent."""
        for _ in range(20):
            for socket in sockets:
                socket.take()
            self.wire.execute()
            self.wire.deliver()
            await asyncio.sleep(0)
            for consumer in self.node.consumers:
                consumer.sweep()
