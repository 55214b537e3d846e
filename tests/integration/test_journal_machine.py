"""The journal against a model: whatever writers, readers, trims and failovers do in whatever order.

At all times the text of every reader is a prefix of the model's, and when it reads on to the head it is
equal. The machine plays the writer, its rivals, the server's trimming, and readers that come and go.
"""

import asyncio
import itertools
from collections.abc import Coroutine
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay import scripts
from relay.errors import Fenced, Gap, NotFound, Refused, StreamLost
from relay.events import Channel, Record, content, encode, event
from relay.journal import Journal, read_entries
from relay.position import START, Position, valid_offset
from relay.scripts import Appended, Claimed, NotClaimed
from relay.wire import Wire
from tests.support.model_reader import ModelReader, texts_of

T = TypeVar("T")
Id = tuple[int, int]  # of an entry: where it ends, and the epoch

RETENTION_S = 600
LAST_SEQUENCE = 2**64 - 1
NAMES = ("a", "b")
DONE = event(Channel.DONE, {"finish_reason": "stop"})
_ids = itertools.count()

texts = st.text(max_size=20)
any_record = st.one_of(
    st.builds(content, texts),
    st.builds(lambda text: Record(Channel.REASONING, text.encode()), texts),
    st.builds(
        lambda index, text: Record(Channel.TOOL_ARGUMENTS, bytes([index]) + text.encode()),
        st.integers(0, 2),
        texts,
    ),
    st.builds(
        lambda channel, text: event(channel, {"text": text}),
        st.sampled_from([Channel.START, Channel.NOTICE, Channel.TOOL_CALL, Channel.EXTRA]),
        texts,
    ),
    st.builds(lambda size: content("é" * size), st.integers(100, 4000)),
)
some_records = st.lists(any_record, min_size=1, max_size=4)
any_reader = st.sampled_from(NAMES)
any_limit = st.one_of(st.integers(1, 40), st.integers(1, 20_000))
pick = st.integers(0, 1000)  # an index into a list that is only known when the rule runs


@dataclass
class Group:
    """A consumer as Redis should know it."""

    last: Id
    members: set[str]
    pending: dict[Id, tuple[int, str]] = field(default_factory=dict)  # where it starts, and who read it


@dataclass
class Replica:
    """What Redis should hold, in the model's terms: what a failover goes back to."""

    head: int = 0
    log: dict[Id, int] = field(default_factory=dict)  # where each entry starts
    groups: dict[str, Group] = field(default_factory=dict)


class Reader:
    """A client with a name: what it has, its connection, and the positions it has seen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = ModelReader()
        self.connection: str | None = None
        self.replaced: str | None = None  # an older connection of the same name
        self.epoch = 0
        self.unconfirmed: list[Id] = []
        self.confirmed = 0  # what its client has said that it has
        self.most_confirmed = 0
        self.seen: list[tuple[Position, ModelReader]] = [(START, ModelReader())]
        self.longest = ModelReader()
        self.true_to: int | None = None  # a failover made what is after it untrue; None: all is true

    def remember(self) -> None:
        """A position that the client could come back with."""
        self.seen.append((Position(self.model.sent, self.epoch), deepcopy(self.model)))
        if self.model.sent > self.longest.sent:
            self.longest = deepcopy(self.model)

    def confirm(self, offset: int) -> None:
        """The client has said that it has everything up to here, and no more."""
        self.confirmed = offset
        self.most_confirmed = max(self.most_confirmed, offset)

    def lose(self, offset: int) -> None:
        """A failover ended its connection and made the text after `offset` untrue."""
        self.connection = self.replaced = None
        self.confirmed = min(offset, self.most_confirmed)  # the replica may know of any earlier one
        if self.model.sent > offset:
            self.true_to = min(offset, self.true_to if self.true_to is not None else offset)
        if self.longest.sent > offset:
            self.longest.go_back(offset)


def has_attached(machine: "JournalMachine") -> bool:
    """Whether any reader has a connection."""
    return any(reader.connection for reader in machine.readers.values())


class JournalMachine(RuleBasedStateMachine):
    """Drives one response after another on the server at `url`."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.wire = self.run(Wire.connect(self.url, name="machine"))
        self.run(scripts.load(self.wire))
        self.begin()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Let the machine's loop run until that is done."""
        return self.runner.run(coroutine)

    def call(self, *args: str | int | bytes) -> Any:
        """Any command."""
        return self.run(self.wire.call(*args))

    def begin(self) -> None:
        """A response of its own, opened and claimed."""
        self.journal = Journal(self.wire, f"machine-{next(_ids)}")
        self.redis = Replica()
        self.replica: tuple[Replica, dict[str, bytes]] | None = None
        self.epoch = 0
        self.starts: list[tuple[int, int]] = []
        self.data = b""  # what the writer has written, as it believes
        self.ends: list[int] = []  # of its entries
        self.records: list[tuple[int, Record]] = []  # where each ends
        self.cancelled = False
        self.closed = False
        self.readers = {name: Reader(name) for name in NAMES}
        self.connections = itertools.count()
        assert self.run(self.journal.open(retention_s=RETENTION_S)) is not None
        self.claim()

    # --- the writer

    def append_at(self, base: int, data: bytes, epoch: int | None = None) -> Appended:
        """One append as the script is given it."""
        return self.run(
            scripts.append_records(
                self.wire,
                self.journal.keys,
                epoch=self.epoch if epoch is None else epoch,
                base=base,
                data=data,
                cap=256,
                retention_s=RETENTION_S,
            )
        )

    def claim(self) -> None:
        """Take the lease that is free: a new epoch, from what is there."""
        claimed = self.run(
            scripts.claim_response(
                self.wire, self.journal.keys, owner="w", lease_ms=60_000, retention_s=RETENTION_S
            )
        )
        assert isinstance(claimed, Claimed)
        assert (claimed.number, claimed.head) == (len(self.starts) + 1, self.redis.head)
        self.epoch = claimed.epoch
        self.starts.append((self.epoch, self.redis.head))
        assert claimed.cancelled == self.cancelled
        self.replica = None  # what a lost claim leaves has its own test

    def written(self, base: int, data: bytes) -> None:
        """Redis took these bytes."""
        self.redis.head = base + len(data)
        self.redis.log[self.redis.head, self.epoch] = base

    def extend(self, records: list[Record]) -> bytes:
        """The writer's next bytes, of which it keeps a copy."""
        data = b""
        for record in records:
            data += encode(record)
            self.records.append((len(self.data) + len(data), record))
        self.data += data
        self.ends.append(len(self.data))
        return data

    def send_again(self) -> None:
        """After a failover: what Redis lacks goes to the same place, from the writer's copy."""
        if self.redis.head < len(self.data):
            base, lacking = self.redis.head, self.data[self.redis.head :]
            with pytest.raises(Gap) as gap:
                self.append_at(len(self.data), encode(content("next")))
            assert gap.value.head == base
            assert self.append_at(base, lacking).head == len(self.data)
            self.written(base, lacking)

    @precondition(lambda self: not self.closed)
    @rule(records=some_records, replicated=st.booleans())
    def append(self, records: list[Record], replicated: bool) -> None:
        """The writer goes on; a replica may have what was there before."""
        self.send_again()
        if replicated:
            self.replicate()
        base = len(self.data)
        data = self.extend(records)
        assert self.append_at(base, data) == Appended(len(self.data), self.cancelled)
        self.written(base, data)

    @rule(
        at=pick,
        records=some_records,
        ahead=st.integers(1, 3),
        off_by=st.integers(-3, 3).filter(bool),
    )
    def append_what_does_not_belong(self, at: int, records: list[Record], ahead: int, off_by: int) -> None:
        """A retry below the head, however long; bytes past the head; a rival at and around it: no change."""
        data = b"".join(map(encode, records))
        ends = [0, *(end for end in self.ends if end < self.redis.head)]
        base = ends[at % len(ends)]
        if base < self.redis.head:
            longer = self.data[base : self.redis.head] + data
            assert self.append_at(base, longer) == Appended(self.redis.head, self.cancelled)
        with pytest.raises(Gap) as gap:
            self.append_at(self.redis.head + ahead, data)
        assert gap.value.head == self.redis.head
        for rival_base in (base, self.redis.head, self.redis.head + ahead):
            with pytest.raises(Fenced):
                self.append_at(rival_base, data, epoch=self.epoch + off_by)

    @precondition(lambda self: not self.closed and len(self.starts) < 6)
    @rule(expired=st.booleans())
    def change_the_worker(self, expired: bool) -> None:
        """The lease is given up, or it expired; the next worker goes on from the head."""
        keys = self.journal.keys
        self.send_again()
        if expired:
            self.call("DEL", keys.lease)
        else:
            assert self.run(scripts.release_lease(self.wire, keys, epoch=self.epoch, owner="w"))
        self.claim()

    @precondition(lambda self: not self.cancelled and not self.closed)
    @rule()
    def cancel(self) -> None:
        """From here on every append says so."""
        assert self.run(scripts.cancel_response(self.wire, self.journal.keys)) == "running"
        self.cancelled = True
        self.replica = None

    @precondition(lambda self: not self.closed and len(self.data) > 200)
    @rule()
    def close(self) -> None:
        """The end; also when it is said twice."""
        self.send_again()
        base = len(self.data)
        data = self.extend([DONE])
        for _ in range(2):
            head = self.run(
                scripts.close_response(
                    self.wire,
                    self.journal.keys,
                    epoch=self.epoch,
                    base=base,
                    data=data,
                    retention_s=RETENTION_S,
                    fields={"status": "completed"},
                )
            )
            assert head == len(self.data)
        self.written(base, data)
        self.closed = True
        self.replica = None
        claimed = self.run(
            scripts.claim_response(
                self.wire, self.journal.keys, owner="v", lease_ms=60_000, retention_s=RETENTION_S
            )
        )
        assert claimed == NotClaimed("done")

    # --- the server

    @rule(length=st.integers(0, 6))
    def trim(self, length: int) -> None:
        """The cap bites, at any length."""
        self.call("XTRIM", self.journal.keys.log, "MAXLEN", length)
        for entry in sorted(self.redis.log)[: max(0, len(self.redis.log) - length)]:
            del self.redis.log[entry]

    def replicate(self) -> None:
        """A replica has everything up to here, and nothing after it."""
        kept = {key: self.call("DUMP", key) for key in self.journal.keys[:4]}
        self.replica = (deepcopy(self.redis), {key: value for key, value in kept.items() if value})

    @precondition(lambda self: self.replica is not None)
    @rule(worker_died=st.booleans(), coming_back=st.sets(any_reader))
    def fail_over(self, worker_died: bool, coming_back: set[str]) -> None:
        """The replica takes over; acknowledged bytes are lost, and every connection is. Some come back."""
        assert self.replica is not None
        replica, dumps = self.replica
        self.redis = deepcopy(replica)
        self.call("DEL", *self.journal.keys[:4])
        for key, value in dumps.items():
            self.call("RESTORE", key, RETENTION_S * 1000, value)
        true_to = self.redis.head if worker_died else len(self.data)
        for reader in self.readers.values():
            reader.lose(true_to)
        if worker_died:
            self.data = self.data[:true_to]
            self.ends = [end for end in self.ends if end <= true_to]
            self.records = [(end, record) for end, record in self.records if end <= true_to]
            self.call("DEL", self.journal.keys.lease)
            self.claim()
        for name in sorted(coming_back):
            self.attach(self.readers[name], *self.readers[name].seen[-1], limit=100)

    @precondition(lambda self: self.closed)
    @rule()
    def expire(self) -> None:
        """Its retention ends: everybody is told, nothing comes back by itself, and another one begins."""
        keys = self.journal.keys
        self.call("DEL", *keys[:4])
        for gone in (
            lambda: self.append_at(self.redis.head, encode(DONE)),
            lambda: self.run(self.attach_script("a", "late", None, 100)),
            lambda: self.run(
                scripts.renew_lease(
                    self.wire,
                    keys,
                    epoch=self.epoch,
                    owner="w",
                    lease_ms=1000,
                    retention_s=RETENTION_S,
                    status="running",
                    level=0,
                )
            ),
        ):
            with pytest.raises(StreamLost):
                gone()
        with pytest.raises(NotFound):
            self.run(self.journal.snapshot())
        with pytest.raises(Refused, match="NOGROUP"):
            self.run(self.read_group("a", "late", 1))
        assert self.run(scripts.cancel_response(self.wire, keys)) is None
        assert self.run(self.journal.consumers()) == []
        assert self.call("EXISTS", *keys[:4]) == 0
        self.begin()

    # --- the readers

    def attach_script(
        self, name: str, connection: str, position: Position | None, limit: int
    ) -> Coroutine[Any, Any, scripts.Attached]:
        """One attach."""
        return self.journal.attach(name, connection, position, limit=limit, retention_s=RETENTION_S)

    async def read_group(self, name: str, connection: str, count: int) -> list[tuple[Id, bytes]]:
        """One read through the group."""
        entries = read_entries(await self.journal.send_read(name, connection, count))
        return [((entry.end, entry.epoch), entry.data) for entry in entries]

    def attach(self, reader: Reader, position: Position | None, had: ModelReader, limit: int) -> None:
        """Attach, expecting the offset that the model says; `had` is what the client has of the text."""
        connection = f"{reader.name}{next(self.connections)}"
        attached = self.run(self.attach_script(reader.name, connection, position, limit))
        if position is None:
            offset = self.resumed(reader.name)
            assert offset <= reader.confirmed, "it would never be given what it has not confirmed"
        else:
            offset = valid_offset(position, self.starts)
            reader.confirm(offset)
        note(f"{reader.name} at {position}: {attached.offset} of {attached.head}")
        assert (attached.offset, attached.head) == (offset, self.redis.head)
        assert attached.rewound == (position is not None and offset < position.offset)
        assert attached.status == ("completed" if self.closed else "running")
        assert len(attached.data) == max(0, min(limit, self.redis.head - offset))
        self.redis.groups[reader.name] = Group((offset, LAST_SEQUENCE), {connection})
        reader.replaced, reader.connection = reader.connection or reader.replaced, connection
        reader.epoch, reader.unconfirmed, reader.true_to = attached.epoch, [], None
        reader.model = deepcopy(had)
        reader.model.go_back(offset)
        reader.model.take(attached.data)
        reader.remember()

    def start_of(self, entry: Id) -> int:
        """Where an unconfirmed entry starts; 0 when what came before it may have been trimmed unread."""
        return self.redis.log.get(entry, 0) if entry != min(self.redis.log, default=entry) else 0

    def resumed(self, name: str) -> int:
        """Where a consumer goes on that brings no position."""
        group = self.redis.groups.get(name)
        if group is None:
            return 0
        return min([group.last[0], *(self.start_of(entry) for entry in sorted(group.pending)[:1])])

    def told(self, group: Group) -> int:
        """Where `consumers` says that one is."""
        oldest = sorted(group.pending)[:1]
        return min([group.last[0], *(self.redis.log.get(entry, entry[0]) for entry in oldest)])

    def delivered(self, name: str, connection: str, count: int) -> list[Id]:
        """What a read through the group should give; it is pending from then on."""
        group = self.redis.groups[name]
        ids = [entry for entry in sorted(self.redis.log) if entry > group.last][:count]
        for entry in ids:
            group.members.add(connection)
            group.pending[entry] = (self.redis.log[entry], connection)
            group.last = entry
        return ids

    def take_entries(self, reader: Reader, connection: str, count: int) -> bool:
        """Live: the next entries, and a hole from the journal when one was trimmed away. False when none."""
        expected = self.delivered(reader.name, connection, count)
        entries = self.run(self.read_group(reader.name, connection, count))
        assert [entry for entry, _ in entries] == expected
        for entry, data in entries:
            if hole := reader.model.take_entry(entry[0], data):
                repaired = self.run(self.range(hole.start, hole.end - hole.start))
                assert reader.model.take(repaired) == hole.end
                assert reader.model.take_entry(entry[0], data) is None
            reader.unconfirmed.append(entry)
            reader.epoch = max(reader.epoch, entry[1])
            reader.remember()
        return bool(entries)

    def attached(self, at: int) -> tuple[Reader, str]:
        """One of the readers that have a connection, and that."""
        able = [(reader, reader.connection) for reader in self.readers.values() if reader.connection]
        return able[at % len(able)]

    @rule(name=any_reader, at=st.integers(0, 6), limit=any_limit, count=st.integers(0, 3))
    def attach_at_a_position(self, name: str, at: int, limit: int, count: int) -> None:
        """A client comes back with an id that it has been given, or for the first time, and reads on."""
        reader = self.readers[name]
        position, had = reader.seen[-1 - at % len(reader.seen)]
        self.attach(reader, position, had, limit)
        if count and reader.connection:
            self.take_entries(reader, reader.connection, count)

    @rule(name=any_reader, limit=any_limit)
    def attach_by_name(self, name: str, limit: int) -> None:
        """A client that knows its name and no position goes on where it has confirmed."""
        reader = self.readers[name]
        self.attach(reader, None, reader.longest, limit)

    @precondition(has_attached)
    @rule(at=pick, count=st.integers(1, 10), confirmed=st.integers(0, 10), dies=st.booleans())
    def read(self, at: int, count: int, confirmed: int, dies: bool) -> None:
        """Live, and the client confirms the oldest of what it was sent; or the node dies with the entries."""
        reader, connection = self.attached(at)
        if dies:
            self.delivered(reader.name, connection, count)
            self.run(self.read_group(reader.name, connection, count))
            reader.connection, reader.replaced = None, connection
            return
        self.take_entries(reader, connection, count)
        acked, reader.unconfirmed = reader.unconfirmed[:confirmed], reader.unconfirmed[confirmed:]
        if acked:
            self.journal.post_ack(reader.name, [b"%d-%d" % entry for entry in acked])
        for entry in acked:
            self.redis.groups[reader.name].pending.pop(entry, None)
            reader.confirm(max(reader.confirmed, entry[0]))

    async def range(self, start: int, size: int) -> bytes:
        """Bytes of the journal."""
        data: bytes = await self.journal.send_range(start, size)
        return data

    @precondition(has_attached)
    @rule(at=pick, size=any_limit, confirmed_at=pick)
    def read_journal(self, at: int, size: int, confirmed_at: int) -> None:
        """Behind: as many bytes as there is credit for, which may cut a record.

        With nothing pending the group is moved to what the client has; and out of credit the reader says
        that it lives, which takes nothing and moves nothing.
        """
        reader, connection = self.attached(at)
        reader.model.take(self.run(self.range(reader.model.sent, size)))
        reader.remember()
        if not reader.unconfirmed:
            offset = self.some_end(reader, confirmed_at)
            self.journal.post_moved(reader.name, offset)
            self.redis.groups[reader.name].last = (offset, LAST_SEQUENCE)
            reader.confirm(offset)

        async def seen() -> list[Any]:
            return read_entries(await self.journal.send_seen(reader.name, connection))

        assert self.run(seen()) == []

    def some_end(self, reader: Reader, at: int) -> int:
        """Where a record ends that the reader has, and Redis."""
        ends = [end for end, _ in self.records if end <= min(reader.model.sent, self.redis.head)]
        return [0, *ends][-1 - at % (len(ends) + 1)]

    @precondition(has_attached)
    @rule(at=pick, said=st.booleans(), keep=st.booleans(), confirmed_at=pick)
    def leave(self, at: int, said: bool, keep: bool, confirmed_at: int) -> None:
        """The connection is gone; its node may say how far it was, or die with it."""
        reader, connection = self.attached(at)
        if said:
            offset = self.some_end(reader, confirmed_at)
            self.journal.post_detach(reader.name, connection, offset, keep=keep)
            self.detached(reader.name, connection, offset, keep=keep)
        else:
            reader.replaced = connection
        reader.connection = None

    @precondition(lambda self: any(reader.replaced for reader in self.readers.values()))
    @rule(at=pick, count=st.integers(0, 3), says=st.booleans(), keep=st.booleans(), confirmed_at=pick)
    def come_late(self, at: int, count: int, says: bool, keep: bool, confirmed_at: int) -> None:
        """A replaced connection's last read was on its way, and then perhaps its detach.

        What that read takes, the new connection does not see live until the detach gives it back.
        """
        able = [(reader, reader.replaced) for reader in self.readers.values() if reader.replaced]
        reader, connection = able[at % len(able)]
        if reader.name not in self.redis.groups:
            return
        # Whether a read that gets nothing brings the connection back differs between servers.
        if count and (expected := self.delivered(reader.name, connection, count)):
            entries = self.run(self.read_group(reader.name, connection, count))
            assert [entry for entry, _ in entries] == expected
        if says:
            offset = self.some_end(reader, confirmed_at)
            self.journal.post_detach(reader.name, connection, offset, keep=keep)
            self.detached(reader.name, connection, offset, keep=keep)
            reader.replaced = None

    def detached(self, name: str, connection: str, offset: int, *, keep: bool) -> None:
        """What a detach should leave."""
        group = self.redis.groups[name]
        if connection not in group.members:
            return
        group.members.discard(connection)
        taken = [entry for entry, (_, owner) in group.pending.items() if owner == connection]
        for entry in taken:
            del group.pending[entry]
        if group.members:
            if taken:  # the newer connection is given them again
                group.last = (self.start_of(min(taken)), LAST_SEQUENCE)
            return
        if keep:
            group.last = (offset, LAST_SEQUENCE)
            self.readers[name].confirm(offset)
        else:
            del self.redis.groups[name]

    # --- what always holds

    @invariant()
    def every_reader_has_a_prefix(self) -> None:
        """Never a byte that is not the writer's, never one left out, in no channel."""
        written = texts_of([record for _, record in self.records])
        for reader in self.readers.values():
            assert self.data.startswith(reader.model.received[: reader.true_to])
            if reader.true_to is None:
                for channel, text in reader.model.texts.items():
                    assert written[channel].startswith(text)

    @invariant()
    def redis_holds_what_the_model_says(self) -> None:
        """Head, positions and unconfirmed entries; and every key expires."""
        known = {consumer.id: consumer for consumer in self.run(self.journal.consumers())}
        assert {name: (consumer.position, consumer.pending) for name, consumer in known.items()} == {
            name: (self.told(group), len(group.pending)) for name, group in self.redis.groups.items()
        }

        async def look() -> tuple[int, list[int]]:
            keys = self.journal.keys
            length = self.wire.send("STRLEN", keys.journal)
            ttls = [self.wire.send("PTTL", key) for key in keys[:4]]
            return await length, [await ttl for ttl in ttls]

        head, ttls = self.run(look())
        assert head == self.redis.head
        assert all(ttl == -2 or 0 < ttl <= RETENTION_S * 1000 for ttl in ttls)

    def teardown(self) -> None:
        """Every reader reads on to the head, and has what the model has."""
        try:
            self.send_again()
            for reader in self.readers.values():
                if reader.connection is None:
                    position, had = reader.seen[-1]
                    self.attach(reader, position, had, 100)
                assert reader.connection is not None
                while self.take_entries(reader, reader.connection, 5):
                    pass
                # What was taken by a replaced connection, or confirmed by an earlier one, comes no more.
                reader.model.take(self.run(self.range(reader.model.sent, len(self.data))))
                assert reader.model.received == self.data
                assert reader.model.texts == texts_of([record for _, record in self.records])
        finally:
            self.run(self.wire.close())
            self.runner.close()


def machine_on(url: str) -> type[JournalMachine]:
    """The machine, bound to a server."""
    return type("BoundJournalMachine", (JournalMachine,), {"url": url})


LIMITS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.only_on("embedded", "redis7")
@pytest.mark.timeout(400)  # a failure takes minutes to be made small; a pass takes seconds
def test_no_order_of_events_shows_a_reader_anything_but_the_text(redis_url: str) -> None:
    """Appends, retries, rivals, trims, failovers, reconnects, lost connections: always a prefix."""
    run_state_machine_as_test(machine_on(redis_url), settings=LIMITS)
