"""A response in Redis: the only module that knows its keys together.

Writers: `claim`, then appends through `relay.scripts`, then `close`. Readers: `attach`, then either
`send_read` (what is live, through the consumer's group) or `send_range` (what is behind, from the
journal), and `send_ack` or `send_moved` for what their client has confirmed. Delivery is at least
once at this level and exactly once to a reader that drops what ends at or before its position.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from relay import scripts
from relay.errors import Malformed, NotFound, Refused, Unavailable
from relay.events import Channel, Placed, decode
from relay.keys import Keys, keys_of
from relay.line import Line
from relay.link import Argument, Reply, pack
from relay.position import Epochs, Position

HEALTH = "health:"  # prefix of a consumer's field in the meta
SLICE_BYTES = 65_536  # of one GETRANGE: bounds the reply that a text or a walk holds in memory
# A consumer whose connection was not heard of for longer counts as detached: nodes say so every second.
LIVE_MS = 5000
MAX_GROUPS = 128  # consumers of one response; more are refused with 429
_LAST_SEQUENCE = "18446744073709551615"
# One below the largest ID: that one is how a server writes `>` to itself, and would read a new entry.
_NO_HISTORY = "18446744073709551615-18446744073709551614"


class Entry(NamedTuple):
    """One entry of the log: its ID, where it ends, its epoch, its bytes, its time."""

    id: bytes
    end: int
    epoch: int
    data: bytes
    stamp: bytes  # seconds, a point, microseconds, as TIME gives them

    @property
    def time_us(self) -> int:
        """When it was appended, by the server's clock, in microseconds of Unix time."""
        seconds, _, micros = self.stamp.partition(b".")
        return int(seconds) * 1_000_000 + int(micros)


class ConsumerState(NamedTuple):
    """A consumer as Redis knows it. `idle_ms` is None when no connection is attached.

    `unread` is the group's lag as Redis gives it: None where Redis does not know, and wrong after a trim
    on Redis below 8 and on Valkey. Only `position` is relied on.
    """

    id: str
    position: int
    pending: int
    idle_ms: int | None
    unread: int | None


class Snapshot(NamedTuple):
    """The meta of a response, and how long its journal is."""

    meta: dict[str, str]
    head: int

    @property
    def status(self) -> str:
        """What the contract calls status."""
        return self.meta["status"]

    @property
    def epoch(self) -> int:
        """The newest epoch."""
        return int(self.meta["epoch"])

    @property
    def starts(self) -> list[tuple[int, int]]:
        """Every epoch, and the offset from which it wrote."""
        return Epochs.parse(self.meta["epoch"], self.meta["starts"]).starts


class Journal:
    """One response, seen through the wire that serves its keys."""

    __slots__ = ("id", "keys", "wire")

    def __init__(self, wire: Line, response_id: str) -> None:
        self.wire = wire
        self.id = response_id
        self.keys: Keys = keys_of(response_id)

    # --- the whole of it

    async def open(self, *, retention_s: int, **fields: Argument) -> float | None:
        """Create it in status `queued`: its creation time, None when the id exists already."""
        fields = {"status": "queued", "level": 0, **fields}
        return await scripts.open_response(self.wire, self.keys, retention_s=retention_s, fields=fields)

    async def snapshot(self) -> Snapshot:
        """Its meta and length. Raises NotFound when there is no such response."""
        found = await self.find()
        if found is None:
            raise NotFound(f"no response {self.id[:64]!r}: never made, or its retention has ended")
        return found

    async def find(self) -> Snapshot | None:
        """Its meta and length, of one moment; None when there is no such response."""
        meta_reply = self.wire.send("HGETALL", self.keys.meta)
        length_reply = self.wire.send("STRLEN", self.keys.journal)
        meta, head = await meta_reply, await length_reply
        if not meta:
            return None
        return Snapshot({key.decode(): value.decode() for key, value in meta.items()}, head)

    async def read(self, start: int, stop: int) -> AsyncIterator[list[Placed]]:
        """The records from `start`, a record boundary, to `stop`, a slice at a time.

        Ends early where the journal ends, and at a record that is not whole yet.
        """
        while start < stop:
            data = await self.send_range(start, min(SLICE_BYTES, stop - start))
            placed, reached = decode(data, start)
            if reached == start:
                return
            yield placed
            start = reached

    async def check_boundary(self, offset: int) -> None:
        """Raises Malformed when `offset` is inside a record: an id that we never gave out.

        Nearly free for recent positions (the log has the entry); for old ones it walks the journal. Raises
        NotFound or Unavailable where the text is gone meanwhile: then nothing can be told of the offset.
        """
        if offset == 0:
            return
        entries = read_entries(await self.wire.call("XRANGE", self.keys.log, f"{offset}-0", "+", "COUNT", 1))
        start = entries[0].end - len(entries[0].data) if entries else 0
        if start > offset:
            start = 0
        async for placed in self.read(start, offset):
            start = placed[-1].end
        if start != offset:
            if (await self.snapshot()).head < offset:
                raise Unavailable(f"the text up to {offset} is not here now", retry_after_s=1)
            raise Malformed(f"not the id of an event of this response: {offset}")

    async def text(self, stop: int) -> AsyncIterator[bytes]:
        """The content up to offset `stop`, in pieces of UTF-8."""
        async for placed in self.read(0, stop):
            yield b"".join(item.record.payload for item in placed if item.record.channel is Channel.CONTENT)

    # --- readers

    async def attach(
        self, consumer: str, connection: str, position: Position | None, *, limit: int, retention_s: int
    ) -> scripts.Attached:
        """Attach a connection; see `lua/attach_consumer.lua`. None: where the consumer was, or the start."""
        return await scripts.attach_consumer(
            self.wire,
            self.keys,
            consumer=consumer,
            connection=connection,
            offset=-1 if position is None else position.offset,
            epoch=0 if position is None else position.epoch,
            limit=limit,
            retention_s=retention_s,
            most=MAX_GROUPS,
        )

    def read_command(self, consumer: str, connection: str, count: int) -> bytes:
        """Packed for `wire.send_packed`: the next `count` entries of the consumer. See `read_entries`."""
        return pack(
            "XREADGROUP", "GROUP", consumer, connection, "COUNT", count, "STREAMS", self.keys.log, ">"
        )

    def send_read(self, consumer: str, connection: str, count: int) -> Reply:
        """Ask for the next `count` entries of the consumer; read the reply with `read_entries`."""
        return self.wire.send_packed(self.read_command(consumer, connection, count))

    def send_range(self, start: int, size: int) -> Reply:
        """Ask for `size` bytes of the journal from `start`."""
        return self.wire.send("GETRANGE", self.keys.journal, start, start + size - 1)

    def send_entries(self, after: int, count: int) -> Reply:
        """Ask for the first `count` entries that end after `after`, of no group; see `read_entries`."""
        return self.wire.send("XRANGE", self.keys.log, f"({after}-{_LAST_SEQUENCE}", "+", "COUNT", count)

    def send_reset(self, consumer: str, connection: str, offset: int) -> Reply:
        """Put a consumer back to `offset` after a break: 1, 0 (replaced by a newer one) or -1 (gone)."""
        return scripts.send_reset(self.wire, self.keys, consumer, connection, offset)

    def send_epochs(self) -> Reply:
        """Ask for the epochs; see `read_epochs`. Sent after a range, they tell of every byte in the range."""
        return self.wire.send("HMGET", self.keys.meta, "epoch", "starts")

    def post_ack(self, consumer: str, ids: list[bytes]) -> None:
        """Confirm entries, without waiting: a lost one is repeated by the next attach."""
        self.wire.post("XACK", self.keys.log, consumer, *ids)

    def post_moved(self, consumer: str, offset: int) -> None:
        """Say how far a consumer that reads the journal has confirmed, without waiting."""
        self.wire.post("XGROUP", "SETID", self.keys.log, consumer, f"{offset}-{_LAST_SEQUENCE}")

    def send_seen(self, consumer: str, connection: str) -> Reply:
        """Say that a connection that may not read now is still there: an empty read of its history."""
        return self.wire.send(
            "XREADGROUP", "GROUP", consumer, connection, "COUNT", 1,
            "STREAMS", self.keys.log, _NO_HISTORY,
        )  # fmt: skip

    def post_health(self, consumer: str, health: str, cause: str) -> None:
        """Note how a consumer's client does, for every node's status; dropped with its detach."""
        scripts.post_note(self.wire, self.keys, HEALTH + consumer, f"{health} {cause}".rstrip())

    def post_detach(self, consumer: str, connection: str, offset: int, *, keep: bool) -> None:
        """Leave the consumer at `offset`; `keep=False` forgets it."""
        scripts.post_detach(
            self.wire, self.keys, consumer=consumer, connection=connection, offset=offset, keep=keep
        )
        fields = [HEALTH + consumer] if keep else [HEALTH + consumer, scripts.ACKED + consumer]
        self.wire.post("HDEL", self.keys.meta, *fields)

    # --- who reads, and how far they are

    async def consumers(
        self, start_of: Callable[[int], int | None] = lambda _end: None
    ) -> list[ConsumerState]:
        """Every consumer's confirmed position: where its oldest pending entry starts, else its last read.

        `start_of` may know where an entry that ends at an offset starts; else the log is asked.
        """
        try:
            groups = await self.wire.call("XINFO", "GROUPS", self.keys.log)
        except Refused:  # no log yet: nothing was appended and nobody attached
            return []
        asked = [self._ask(group) for group in groups]
        return [
            await self._state(group, replies, start_of) for group, replies in zip(groups, asked, strict=True)
        ]

    async def entries_after(self, offset: int) -> int:
        """How many entries of the log end after `offset`."""
        return await scripts.count_entries(self.wire, self.keys, offset)

    def _ask(self, group: dict[bytes, Any]) -> tuple[Reply, Reply | None]:
        name = group[b"name"]
        members = self.wire.send("XINFO", "CONSUMERS", self.keys.log, name)
        return members, self.wire.send("XPENDING", self.keys.log, name) if group[b"pending"] else None

    async def _state(
        self,
        group: dict[bytes, Any],
        replies: tuple[Reply, Reply | None],
        start_of: Callable[[int], int | None],
    ) -> ConsumerState:
        position = _offset(group[b"last-delivered-id"])
        pending = 0
        idle: int | None = None
        try:
            members = await replies[0]
            idle = min((member[b"idle"] for member in members), default=None)
            summary = await replies[1] if replies[1] is not None else None
        except Refused:  # the group went away between the two
            summary = None
        if summary and summary[0]:
            pending = summary[0]
            position = min(position, await self._start(summary[1], start_of))
        return ConsumerState(group[b"name"].decode(), position, pending, idle, group.get(b"lag"))

    async def _start(self, entry_id: bytes, start_of: Callable[[int], int | None]) -> int:
        end = _offset(entry_id)
        known = start_of(end)
        if known is not None:
            return known
        entries = read_entries(await self.wire.call("XRANGE", self.keys.log, entry_id, entry_id))
        return end - len(entries[0].data) if entries else end


def read_entries(reply: Any) -> list[Entry]:
    """The entries of an XRANGE or XREADGROUP reply, without those that were trimmed while pending."""
    if not reply:
        return []
    # XREADGROUP of one stream answers a map of one.
    rows = next(iter(reply.values())) if type(reply) is dict else reply
    entries = []
    for entry_id, fields in rows:
        if fields:
            end, _, epoch = entry_id.partition(b"-")
            entries.append(Entry(entry_id, int(end), int(epoch), fields[1], fields[3]))
    return entries


def read_epochs(reply: Any) -> Epochs:
    """The reply to `send_epochs`; of a response that is gone, no epoch at all."""
    newest, starts = reply
    return Epochs.parse((newest or b"0").decode(), (starts or b"").decode())


def _offset(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
