"""One response in Redis, and the wire to it, faked; `test_stream` holds what it says against a real one."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import hiredis

from relay import scripts
from relay.errors import ConnectionLost, Refused, Unavailable
from relay.link import Argument, Reply, pack
from relay.position import Position
from relay.scripts import Attached
from relay.wire import Wire
from tests.support.fake_loop import FakeLoop

LAST_SEQUENCE = 2**64 - 1


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
