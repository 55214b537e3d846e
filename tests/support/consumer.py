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

Replies and rings leave the server on one connection, in order, as they do in truth. What the fake server
says is held against a real one in `tests/unit/test_stream.py`.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import hiredis
import orjson

from api.ledger import Credit
from api.metrics import Metrics
from api.node import Node
from api.protocol import ClientSocket
from api.stream import Consumer
from relay import scripts
from relay.errors import ConnectionLost, Refused, Unavailable
from relay.events import Channel, Placed, Record, content, decode, encode, event
from relay.journal import Journal
from relay.keys import keys_of
from relay.link import Argument, Reply, pack
from relay.position import Position
from relay.scripts import Attached
from relay.settings import Settings
from relay.sse import Event, Parser
from relay.topology import Topology
from relay.wire import Wire

ID = "rs_000000000000000000000001"
LAST_SEQUENCE = 2**64 - 1

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


class Timer:
    """What `call_later` gives."""

    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Do not fire."""
        self.cancelled = True


class FakeLoop:
    """As much of an event loop as futures and timers need. An error in a callback is the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._soon: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Seconds, as the test has set them."""
        return self.now

    def get_debug(self) -> bool:
        """Futures ask."""
        return False

    def call_soon(self, callback: Callable[..., object], *args: object, **_: object) -> None:
        """In the order of the calls, when `run` comes to it."""
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """When `advance` passes it."""
        timer = Timer(self.now + delay, callback)
        heapq.heappush(self._timers, (timer.at, next(self._order), timer))
        return timer

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=cast("asyncio.AbstractEventLoop", self))

    def run(self) -> None:
        """Everything that is due now."""
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        until = self.now + seconds
        self.run()
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
            self.run()
        self.now = until

    @property
    def timers(self) -> int:
        """Those that will fire."""
        return sum(not timer.cancelled for _, _, timer in self._timers)


class StreamId(NamedTuple):
    """An ID of a Redis stream, in its order."""

    end: int
    sequence: int

    @classmethod
    def parse(cls, text: bytes) -> "StreamId":
        """Read `N-M`."""
        end, _, sequence = text.partition(b"-")
        return cls(int(end), int(sequence))

    def __bytes__(self) -> bytes:
        return b"%d-%d" % self


class Group:
    """A consumer group: its last delivered ID, its pending entries, its one member."""

    def __init__(self, last: StreamId, member: bytes) -> None:
        self.last = last
        self.member = member
        self.pending: list[StreamId] = []


class FakeServer:
    """One response in Redis, as far as a consumer sees it."""

    def __init__(self) -> None:
        self.journal = b""
        self.log: list[tuple[StreamId, bytes]] = []
        self.epoch = self.first_epoch = 1
        self.starts = [0]  # of the first epoch, and of each after it
        self.status = b"running"
        self.groups: dict[bytes, Group] = {}
        self.acks: dict[bytes, bytes] = {}  # fields of the meta
        self.gone = False
        self.publish: Callable[[bytes], None] = lambda _payload: None

    def append(self, data: bytes) -> None:
        """What `append_records` does."""
        self.journal += data
        self.log.append((StreamId(len(self.journal), self.epoch), data))

    def attach(self, name: str, member: str, position: Position | None, limit: int) -> Attached:
        """What an attach gives."""
        at, epoch = (-1, 0) if position is None else position
        reply = self._attach(name.encode(), member.encode(), b"%d" % at, b"%d" % epoch, b"%d" % limit)
        _, offset, head, status, now, data, rewound = reply
        return Attached(offset, head, status.decode(), int(now), data, bool(rewound))

    def position(self, group: bytes) -> int:
        """Where a consumer that comes back without an id goes on: see `lua/attach_consumer.lua`."""
        found = self.groups[group]
        if not found.pending:
            return found.last.end
        oldest = found.pending[0]
        # Of a log that was trimmed, the first entry does not tell whether unread ones stood before it.
        starts = [entry_id.end - len(data) for entry_id, data in self.log[1:] if entry_id == oldest]
        return min(found.last.end, *starts) if starts else 0

    def run(self, args: list[bytes]) -> Any:
        """Execute a command; its reply, an exception as itself."""
        try:
            return getattr(self, args[0].decode().lower())(*args[1:])
        except Refused as error:
            return error

    # --- the commands that a consumer sends; named as they are

    def getrange(self, _key: bytes, start: bytes, stop: bytes) -> bytes:
        """Part of the journal, both ends included."""
        return self.journal[int(start) : int(stop) + 1]

    def hmget(self, _key: bytes, *fields: bytes) -> list[bytes | None]:
        """The epochs of the meta."""
        assert fields == (b"epoch", b"starts")
        starts = b",".join(b"%d:%d" % pair for pair in enumerate(self.starts, self.first_epoch))
        return [None, None] if self.gone else [b"%d" % self.epoch, starts]

    def xreadgroup(self, *args: bytes) -> dict[bytes, Any] | None:
        """GROUP group consumer COUNT n STREAMS log `>`, or an ID of the history."""
        _, group, _, _, count, _, key, after = args
        if self.gone or group not in self.groups:
            raise Refused(
                f"NOGROUP No such key '{key.decode()}' or consumer group '{group.decode()}' in"
                " XREADGROUP with GROUP option"
            )
        found = self.groups[group]
        if after != b">":
            return {key: []}  # the history after the last ID of all: for the idle time alone
        new = [(entry_id, data) for entry_id, data in self.log if entry_id > found.last][: int(count)]
        if not new:
            return None
        found.last = new[-1][0]
        # By ID, each once: a group that was moved back is given again what is pending.
        found.pending = sorted({*found.pending, *(entry_id for entry_id, _ in new)})
        return {key: [[bytes(entry_id), [b"d", data, b"t", b"0.0"]] for entry_id, data in new]}

    def xrange(self, _key: bytes, after: bytes, _last: bytes, _word: bytes, count: bytes) -> list[Any]:
        """Entries after an ID, of no group."""
        assert after.startswith(b"(")
        found = [item for item in self.log if item[0] > StreamId.parse(after[1:])][: int(count)]
        return [[bytes(entry_id), [b"d", data, b"t", b"0.0"]] for entry_id, data in found]

    def xack(self, _key: bytes, group: bytes, *ids: bytes) -> int:
        """Drop pending entries."""
        found = self.groups.get(group)
        if found is None:
            return 0
        done = {StreamId.parse(entry_id) for entry_id in ids} & set(found.pending)
        found.pending = [entry_id for entry_id in found.pending if entry_id not in done]
        return len(done)

    def xgroup(self, word: bytes, _key: bytes, group: bytes, last: bytes) -> bytes:
        """SETID: the pending entries stay."""
        assert word == b"SETID"
        if group not in self.groups:
            raise Refused(f"NOGROUP No such consumer group '{group.decode()}' for key name '{_key.decode()}'")
        self.groups[group].last = StreamId.parse(last)
        return b"OK"

    def hget(self, _key: bytes, field: bytes) -> bytes | None:
        """A consumer's last ack."""
        assert field.startswith(b"acked:")
        return None if self.gone else self.acks.get(field)

    def hdel(self, _key: bytes, *fields: bytes) -> int:
        """A consumer's health goes with it, and its acks with its name."""
        assert all(field.startswith((b"health:", b"acked:")) for field in fields)
        return sum(self.acks.pop(field, None) is not None for field in fields)

    def evalsha(self, sha: bytes, count: bytes, *rest: bytes) -> Any:
        """`attach_consumer` and `detach_consumer`, retold."""
        args = rest[int(count) :]
        if sha.decode() == scripts.ATTACH.sha:
            return self._attach(*args)
        assert sha.decode() == scripts.DETACH.sha
        return self._detach(*args)

    def eval(self, text: bytes, _count: bytes, _key: bytes, group: bytes, member: bytes, at: bytes) -> int:
        """`reset_consumer`, retold."""
        assert text.decode() == scripts.RESET.text
        found = self.groups.get(group)
        if self.gone or found is None:
            return -1
        if found.member != member:
            return 0
        self.groups[group] = Group(StreamId(int(at), LAST_SEQUENCE), member)
        return 1

    def _attach(self, group: bytes, member: bytes, at: bytes, epoch: bytes, limit: bytes, *_: bytes) -> Any:
        if self.gone:
            return [b"GONE"]
        offset, rewound = int(at), 0
        if offset < 0:
            offset = self.position(group) if group in self.groups else 0
        else:
            for start in self.starts[max(0, int(epoch) - self.first_epoch + 1) :]:
                if start < offset:
                    offset, rewound = start, 1
        self.groups[group] = Group(StreamId(offset, LAST_SEQUENCE), member)
        self.publish(b"attached %b %b" % (group, member))
        data = self.journal[offset : offset + int(limit)]
        return [b"OK", offset, len(self.journal), self.status, b"%d" % self.epoch, data, rewound]

    def _detach(self, group: bytes, member: bytes, offset: bytes, keep: bytes) -> int:
        found = self.groups.get(group)
        if found is None or found.member != member:
            return 0
        if keep == b"0":
            del self.groups[group]
        else:
            self.groups[group] = Group(StreamId(int(offset), LAST_SEQUENCE), b"")
        return 1


class FakeWire:
    """`Wire` to a `FakeServer`: what is sent waits for `execute`, what comes back for `deliver`."""

    def __init__(self, server: FakeServer, loop: "FakeLoop | asyncio.AbstractEventLoop") -> None:
        self._published: list[bytes] = []  # by the command that runs: leaves after its reply
        self.server = server
        server.publish = self._published.append
        self.loop = loop
        self.sent: deque[tuple[list[bytes], Reply | None]] = deque()
        self.coming: deque[tuple[Reply | None, Any]] = deque()  # replies, and (None, payload) of pushes
        self.commands: list[list[bytes]] = []  # all of them, ever
        self.reads: list[Reply] = []  # the replies to reads, ever
        self.listeners: dict[str, Callable[[bytes], None]] = {}
        self.connected = True
        self.reconnect_callbacks: list[Callable[[], None]] = []

    # --- as the consumer sees it

    def send(self, *args: Argument) -> Reply:
        """`Wire.send`."""
        return self.send_packed(pack(*args))

    @property
    def is_connected(self) -> bool:
        """`Wire.is_connected`."""
        return self.connected

    def send_packed(self, packed: bytes) -> Reply:
        """`Wire.send_packed`."""
        if not self.connected:
            raise Unavailable("no connection to Redis")
        future: Reply = self.loop.create_future()
        self._put(packed, future)
        return future

    def post(self, *args: Argument) -> None:
        """`Wire.post`."""
        if self.connected:
            self._put(pack(*args), None)

    async def call(self, *args: Argument) -> Any:
        """`Wire.call`, answered at once."""
        reply = self.send(*args)
        self.execute()
        self.deliver()
        return await reply

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        """`Wire.subscribe`."""
        self.listeners[channel] = listener

    def unsubscribe(self, channel: str) -> None:
        """`Wire.unsubscribe`."""
        del self.listeners[channel]

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """`Wire.on_reconnect`."""
        self.reconnect_callbacks.append(callback)

    def as_wire(self) -> Wire:
        """Itself, for the type checker."""
        return cast("Wire", self)

    # --- as the test moves it

    def execute(self, most: int | None = None) -> int:
        """The server runs commands that have been sent; how many."""
        count = len(self.sent) if most is None else min(most, len(self.sent))
        for _ in range(count):
            args, reply = self.sent.popleft()
            answer = self.server.run(args)
            if reply is not None:
                self.coming.append((reply, answer))
            self.coming += [(None, payload) for payload in self._published]
            self._published.clear()
        return count

    def push(self, payload: bytes) -> None:
        """The server publishes on the bell."""
        self.coming.append((None, payload))

    def deliver(self, most: int | None = None) -> int:
        """Replies and pushes arrive, and what they set off runs; how many."""
        count = len(self.coming) if most is None else min(most, len(self.coming))
        for _ in range(count):
            reply, answer = self.coming.popleft()
            if reply is None:
                for listener in list(self.listeners.values()):
                    listener(answer)
            elif not reply.done():
                if isinstance(answer, Exception):
                    reply.set_exception(answer)
                    reply.exception()
                else:
                    reply.set_result(answer)
            if isinstance(self.loop, FakeLoop):
                self.loop.run()
        return count

    def lose_pushes(self) -> None:
        """Every ring on the way is lost."""
        self.coming = deque(item for item in self.coming if item[0] is not None)

    def break_connection(self) -> None:
        """What is in flight fails; nothing more can be sent until `connected` is true again."""
        self.connected = False
        replies = [reply for _, reply in self.sent] + [reply for reply, _ in self.coming]
        self.sent.clear()
        self.coming.clear()
        for reply in replies:
            if reply is not None and not reply.done():
                reply.set_exception(ConnectionLost("lost the connection to Redis"))
                reply.exception()
        if isinstance(self.loop, FakeLoop):
            self.loop.run()

    @property
    def reads_in_flight(self) -> int:
        """Reads of the log or the journal that the consumer has not had an answer to."""
        return sum(not reply.done() for reply in self.reads)

    def named(self, word: str) -> list[list[bytes]]:
        """The commands of one name that were ever sent."""
        return [args for args in self.commands if args[0] == word.encode()]

    def _put(self, packed: bytes, reply: Reply | None) -> None:
        reader = hiredis.Reader()
        reader.feed(packed)
        args = reader.gets()
        self.commands.append(args)
        self.sent.append((args, reply))
        if reply is not None and _is_read(args):
            self.reads.append(reply)


def _is_read(args: list[bytes]) -> bool:
    return args[0] in {b"GETRANGE", b"XRANGE"} or (args[0] == b"XREADGROUP" and args[-1] == b">")


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
