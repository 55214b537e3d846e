"""The journal on real servers: what each script promises to writers, and what a reader finds."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from relay import scripts
from relay.errors import (
    Fenced,
    Gap,
    Malformed,
    NotFound,
    OutOfMemory,
    Overloaded,
    Refused,
    StreamLost,
    Unavailable,
)
from relay.events import Channel, Record, content, encode, event
from relay.journal import MAX_GROUPS, Entry, Journal, read_entries
from relay.position import Position
from relay.scripts import Appended, Attached, Claimed, NotClaimed
from relay.wire import Wire, open_wire
from tests.support.servers import admin, out_of_memory
from tests.support.wait import wait_until_async

RETENTION_S = 600
CAP = 1000
DONE = event(Channel.DONE, {"finish_reason": "stop"})


class Writer:
    """What a worker does, one step at a time. `head` and `data` are what it believes it has written."""

    def __init__(self, journal: Journal, owner: str = "worker-1") -> None:
        self.journal = journal
        self.owner = owner
        self.epoch = 0
        self.data = b""

    @property
    def head(self) -> int:
        """Where its next bytes belong."""
        return len(self.data)

    async def claim(self, *, lease_ms: int = 60_000) -> Claimed | NotClaimed:
        """Take the lease; on success go on from the head that the journal has."""
        claimed = await scripts.claim_response(
            self.journal.wire,
            self.journal.keys,
            owner=self.owner,
            lease_ms=lease_ms,
            retention_s=RETENTION_S,
        )
        if isinstance(claimed, Claimed):
            self.epoch = claimed.epoch
            self.data = await self.journal.send_range(0, 1_000_000)
            assert self.head == claimed.head
        return claimed

    async def append_at(
        self, base: int, data: bytes, *, epoch: int | None = None, cap: int = CAP
    ) -> Appended:
        """One append, as told."""
        return await scripts.append_records(
            self.journal.wire,
            self.journal.keys,
            epoch=self.epoch if epoch is None else epoch,
            base=base,
            data=data,
            cap=cap,
            retention_s=RETENTION_S,
        )

    async def write(self, *records: Record | str, cap: int = CAP) -> int:
        """Append records, strings as content, as one entry; the new head."""
        data = b"".join(encode(content(part) if isinstance(part, str) else part) for part in records)
        appended = await self.append_at(self.head, data, cap=cap)
        self.data += data
        assert appended.head == self.head
        return self.head

    async def close(
        self,
        data: bytes | None = None,
        *,
        base: int | None = None,
        status: str = "completed",
        **fields: str,
    ) -> int:
        """End it, with a `done` record unless told otherwise."""
        return await scripts.close_response(
            self.journal.wire,
            self.journal.keys,
            epoch=self.epoch,
            base=self.head if base is None else base,
            data=encode(DONE) if data is None else data,
            retention_s=RETENTION_S,
            fields={"status": status, **fields},
        )

    async def renew(self, *, status: str = "running", level: int = 0, lease_ms: int = 60_000) -> bool:
        """One renewal."""
        return await scripts.renew_lease(
            self.journal.wire,
            self.journal.keys,
            epoch=self.epoch,
            owner=self.owner,
            lease_ms=lease_ms,
            retention_s=RETENTION_S,
            status=status,
            level=level,
        )

    async def release(self) -> bool:
        """Hand it over."""
        return await scripts.release_lease(
            self.journal.wire, self.journal.keys, epoch=self.epoch, owner=self.owner
        )


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[Wire]:
    """A wire with the scripts loaded."""
    async with open_wire(redis_url, name="journal-test") as wire:
        scripts.keep_loaded(wire)
        await scripts.load(wire)
        yield wire


@pytest.fixture
async def journal(wire: Wire) -> Journal:
    """A response that was just opened."""
    journal = Journal(wire, "r1")
    assert await journal.open(retention_s=RETENTION_S, model="simulated", request="{}") is not None
    return journal


@pytest.fixture
async def writer(journal: Journal) -> Writer:
    """A worker that holds its first lease."""
    writer = Writer(journal)
    assert isinstance(await writer.claim(), Claimed)
    return writer


async def call(journal: Journal, command: str, *args: str | int | bytes) -> Any:
    """Any command, on the test's wire."""
    return await journal.wire.call(command, *args)


async def state(journal: Journal) -> tuple[Any, ...]:
    """Everything of a response but its TTLs: to say that nothing has changed."""
    keys = journal.keys
    return (
        await call(journal, "HGETALL", keys.meta),
        await call(journal, "GET", keys.journal),
        await call(journal, "XRANGE", keys.log, "-", "+"),
        await call(journal, "GET", keys.lease),
    )


async def assert_every_key_expires(journal: Journal, most_s: int = RETENTION_S) -> None:
    """Every key of the response is there for a bounded time."""
    for key in await call(journal, "KEYS", f"relay:{{{journal.id}}}:*"):
        assert 0 < await call(journal, "PTTL", key) <= most_s * 1000, key


async def attach(
    journal: Journal,
    consumer: str = "c",
    connection: str = "1",
    position: Position | None = None,
    *,
    limit: int = 65_536,
) -> Attached:
    """Attach with the test's retention."""
    return await journal.attach(consumer, connection, position, limit=limit, retention_s=RETENTION_S)


async def read(
    journal: Journal, consumer: str = "c", connection: str = "1", count: int = 1000
) -> list[Entry]:
    """The consumer's next entries."""
    return read_entries(await journal.send_read(consumer, connection, count))


async def position_of(journal: Journal, consumer: str = "c") -> int:
    """The consumer's confirmed position, as the journal tells it."""
    return {known.id: known.position for known in await journal.consumers()}[consumer]


async def text_of(journal: Journal, stop: int = 1_000_000) -> str:
    """The whole content."""
    return b"".join([piece async for piece in journal.text(stop)]).decode()


async def dump(journal: Journal) -> dict[str, bytes]:
    """The response as it is now, to be brought back by `fail_over`."""
    kept = {key: await call(journal, "DUMP", key) for key in journal.keys[:4]}
    return {key: value for key, value in kept.items() if value is not None}


async def fail_over(journal: Journal, kept: dict[str, bytes]) -> None:
    """What a failover to a replica that was behind leaves: the response as it was at `dump`."""
    await call(journal, "DEL", *journal.keys[:4])
    for key, value in kept.items():
        await call(journal, "RESTORE", key, RETENTION_S * 1000, value)


# --- open


async def test_an_opened_response_is_queued_and_empty(journal: Journal) -> None:
    """Its meta has what was given and the server's time, and nothing more."""
    server_s = int((await call(journal, "TIME"))[0])
    snapshot = await journal.snapshot()
    assert (snapshot.status, snapshot.epoch, snapshot.head) == ("queued", 0, 0)
    assert snapshot.meta["model"] == "simulated"
    assert abs(float(snapshot.meta["created_at"]) - server_s) < 10
    assert await journal.consumers() == []
    assert await text_of(journal) == ""
    await assert_every_key_expires(journal)


async def test_an_id_is_opened_once(journal: Journal) -> None:
    """A second open says so and changes nothing."""
    before = await state(journal)
    assert await journal.open(retention_s=RETENTION_S, model="other") is None
    assert await state(journal) == before


async def test_of_many_that_open_one_id_one_succeeds(redis_url: str, wire: Wire) -> None:
    """Two creates with one id never mix their fields."""
    async with open_wire(redis_url) as second:
        made = await asyncio.gather(
            *(
                Journal((wire, second)[number % 2], "r").open(retention_s=RETENTION_S, a=number, b=number)
                for number in range(20)
            )
        )
    (winner,) = (number for number, created_at in enumerate(made) if created_at is not None)
    meta = (await Journal(wire, "r").snapshot()).meta
    assert meta["a"] == meta["b"] == str(winner)
    assert float(meta["created_at"]) == made[winner]


async def test_there_is_no_snapshot_of_what_is_not_there(wire: Wire) -> None:
    """Never made, and made and expired, look alike."""
    with pytest.raises(NotFound, match="retention"):
        await Journal(wire, "nobody").snapshot()


# --- append


async def test_an_append_goes_to_the_log_and_the_journal(writer: Writer) -> None:
    """The entry that ends at byte N has the ID N-epoch, and the journal has its bytes."""
    journal = writer.journal
    first = await writer.write("Hello")
    second = await writer.write(", ", "world")
    server_s = int((await call(journal, "TIME"))[0])
    entries = read_entries(await call(journal, "XRANGE", journal.keys.log, "-", "+"))
    assert [entry.id for entry in entries] == [b"%d-%d" % (end, writer.epoch) for end in (first, second)]
    assert [entry.epoch for entry in entries] == [writer.epoch] * 2
    assert [entry.end for entry in entries] == [first, second]
    assert b"".join(entry.data for entry in entries) == writer.data
    assert all(abs(entry.time_us / 1e6 - server_s) < 10 for entry in entries)
    assert await journal.send_range(0, 1000) == writer.data
    assert await text_of(journal) == "Hello, world"
    assert await text_of(journal, stop=first) == "Hello"
    await assert_every_key_expires(journal)


async def test_an_append_rings_the_bell_with_the_new_head(writer: Writer) -> None:
    """Whoever listens learns how far the journal goes, once an append; a retry rings nobody."""
    heard: list[bytes] = []
    writer.journal.wire.subscribe(writer.journal.keys.bell, heard.append)
    first = await writer.write("a")
    second = await writer.write("b")
    await writer.append_at(0, writer.data[:first])
    await call(writer.journal, "PING")  # what was published comes before the answer
    assert heard == [b"%d" % first, b"%d" % second]


async def test_an_append_repeated_changes_nothing(writer: Writer) -> None:
    """Its reply was lost: the retry answers the head."""
    head = await writer.write("once")
    before = await state(writer.journal)
    for _ in range(2):
        assert await writer.append_at(0, writer.data) == Appended(head, cancelled=False)
    assert await state(writer.journal) == before


async def test_a_retry_with_more_bytes_answers_how_far_the_first_try_came(writer: Writer) -> None:
    """Nothing of it is written: the writer goes on from the head, in one piece without overlap."""
    head = await writer.write("once")
    before = await state(writer.journal)
    longer = writer.data + encode(content(" more"))
    assert await writer.append_at(0, longer) == Appended(head, cancelled=False)
    assert await state(writer.journal) == before
    assert (await writer.append_at(head, longer[head:])).head == len(longer)
    assert await text_of(writer.journal) == "once more"


@pytest.mark.parametrize("which", ["none", "older", "newer"])
async def test_an_append_under_another_epoch_is_fenced(writer: Writer, which: str) -> None:
    """At the head, below it and above it: a writer that was replaced writes nothing."""
    epoch = {"none": 0, "older": writer.epoch, "newer": writer.epoch + 2 * scripts.EPOCH_NONCES}[which]
    assert await writer.release()
    assert isinstance(await writer.claim(), Claimed)
    head = await writer.write("mine")
    before = await state(writer.journal)
    for base in (0, head, head + 1):
        with pytest.raises(Fenced):
            await writer.append_at(base, encode(content("theirs")), epoch=epoch)
    assert await state(writer.journal) == before


@pytest.mark.parametrize("past", [1, 1000])
async def test_an_append_past_the_head_is_a_gap(writer: Writer, past: int) -> None:
    """A failover lost bytes: the writer learns from where to send again, and nothing is written."""
    head = await writer.write("kept")
    before = await state(writer.journal)
    with pytest.raises(Gap) as gap:
        await writer.append_at(head + past, encode(content("later")))
    assert gap.value.head == head
    assert await state(writer.journal) == before


async def test_what_a_failover_lost_is_sent_again_to_the_same_place(writer: Writer) -> None:
    """The same bytes at the same offsets: no reader can tell."""
    kept = await writer.write("kept ")
    replica = await dump(writer.journal)
    await writer.write("lost")
    await fail_over(writer.journal, replica)
    with pytest.raises(Gap) as gap:
        await writer.append_at(writer.head, encode(content(" new")))
    assert gap.value.head == kept
    resent = await writer.append_at(kept, writer.data[kept:])
    assert resent.head == writer.head
    await writer.write(" new")
    assert await text_of(writer.journal) == "kept lost new"


async def test_an_append_to_what_is_gone_loses_the_stream(writer: Writer) -> None:
    """Nothing is written to a response whose meta has expired."""
    await writer.write("a")
    await call(writer.journal, "DEL", *writer.journal.keys[:4])
    with pytest.raises(StreamLost):
        await writer.append_at(writer.head, encode(content("b")))
    assert await call(writer.journal, "KEYS", "*") == []


async def test_an_append_of_nothing_is_refused(writer: Writer) -> None:
    """Two entries cannot end at one byte."""
    await writer.write("a")
    before = await state(writer.journal)
    with pytest.raises(Refused):
        await writer.append_at(writer.head, b"")
    assert await state(writer.journal) == before


async def test_the_log_is_capped_and_the_journal_is_complete(writer: Writer) -> None:
    """The cap trims in whole nodes of 100 entries; the text is all there."""
    words = [f"word {number}, " for number in range(600)]
    for word in words:
        await writer.write(word, cap=100)
    assert 100 <= await call(writer.journal, "XLEN", writer.journal.keys.log) < 300
    assert await text_of(writer.journal) == "".join(words)
    records = [placed async for slice_ in writer.journal.read(0, writer.head) for placed in slice_]
    assert [record.record for record in records] == [content(word) for word in words]
    assert records[-1].end == writer.head


async def test_pipelined_appends_run_in_order(writer: Writer) -> None:
    """The pump need not wait for one append before it sends the next."""
    journal, replies, base = writer.journal, [], 0
    command = scripts.AppendCommand(
        journal.wire, journal.keys, epoch=writer.epoch, cap=CAP, retention_s=RETENTION_S
    )
    for number in range(50):
        data = encode(content(f"{number} "))
        replies.append(command.send(base, data))
        base += len(data)
    heads = [scripts.read_append(reply).head for reply in await asyncio.gather(*replies)]
    assert heads == sorted(heads)
    assert heads[-1] == base
    assert await text_of(journal) == "".join(f"{number} " for number in range(50))
    await assert_every_key_expires(journal)


async def test_a_packed_append_refuses_like_the_other(writer: Writer) -> None:
    """Gap, fence and loss read the same from a reply that nobody waited for."""
    keys, wire = writer.journal.keys, writer.journal.wire
    mine, stale = (
        scripts.AppendCommand(wire, keys, epoch=epoch, cap=CAP, retention_s=RETENTION_S)
        for epoch in (writer.epoch, 0)
    )
    data = encode(content("\r\n$3\r\nbytes that look like the protocol"))
    assert scripts.read_append(await mine.send(0, data)) == Appended(len(data), cancelled=False)
    assert scripts.read_append(await mine.send(0, data)) == Appended(len(data), cancelled=False)
    with pytest.raises(Gap):
        scripts.read_append(await mine.send(len(data) + 1, data))
    with pytest.raises(Fenced):
        scripts.read_append(await stale.send(len(data), data))
    await scripts.cancel_response(wire, keys)
    assert scripts.read_append(await mine.send(0, data)) == Appended(len(data), cancelled=True)
    await wire.call("DEL", *keys[:4])
    with pytest.raises(StreamLost):
        scripts.read_append(await mine.send(len(data), data))


async def test_a_server_that_forgot_the_scripts_is_given_their_text(writer: Writer) -> None:
    """SCRIPT FLUSH, or a restart behind a proxy, costs one more round trip and nothing else."""
    await call(writer.journal, "SCRIPT", "FLUSH")
    await writer.write("a")
    await call(writer.journal, "SCRIPT", "FLUSH")
    assert (await attach(writer.journal)).head == writer.head


async def test_the_scripts_are_loaded_again_after_a_reconnect(redis_url: str, writer: Writer) -> None:
    """A failover to a server without them must not fail the appends that are sent without waiting."""
    wire = writer.journal.wire
    with admin(redis_url) as client:
        client.script_flush()
        # The newest, for one that has left may be listed for a moment more.
        mine = max(int(row["id"]) for row in client.client_list() if row["name"] == "journal-test")
        client.client_kill_filter(_id=mine)
    await wait_until_async(lambda: wire.reconnects == 1, "the wire is back")
    loaded = await wire.call("SCRIPT", "EXISTS", *(script.sha for script in scripts.ALL))
    assert loaded == [1] * len(scripts.ALL)


# --- claim, renew, release


async def test_a_claim_takes_the_lease_and_raises_the_epoch(journal: Journal) -> None:
    """The worker gets all it needs: the epoch, where to go on, what to generate, since when."""
    claimed = await Writer(journal).claim(lease_ms=5000)
    assert isinstance(claimed, Claimed)
    assert (claimed.number, claimed.head, claimed.request, claimed.cancelled) == (1, 0, b"{}", False)
    snapshot = await journal.snapshot()
    assert claimed.created_at == float(snapshot.meta["created_at"])
    assert (snapshot.status, snapshot.epoch) == ("running", claimed.epoch)
    assert snapshot.meta["starts"] == f"{claimed.epoch}:0"
    assert await call(journal, "GET", journal.keys.lease) == b"worker-1"
    assert 0 < await call(journal, "PTTL", journal.keys.lease) <= 5000


async def test_each_claim_is_a_new_epoch_from_the_head(writer: Writer) -> None:
    """Where each epoch began is kept, because a position is only true under its epoch."""
    first = await writer.write("one")
    assert await writer.release()
    second = Writer(writer.journal, "worker-2")
    claimed = await second.claim()
    assert isinstance(claimed, Claimed)
    assert (claimed.number, claimed.head, claimed.request) == (2, first, b"{}")
    end = await second.write(" two")
    await call(writer.journal, "DEL", writer.journal.keys.lease)  # it expired
    third = Writer(writer.journal, "worker-3")
    claimed = await third.claim()
    assert isinstance(claimed, Claimed)
    assert (claimed.number, claimed.head) == (3, end)
    assert (await writer.journal.snapshot()).meta["starts"] == (
        f"{writer.epoch}:0,{second.epoch}:{first},{third.epoch}:{end}"
    )
    assert writer.epoch < second.epoch < third.epoch
    await third.write(" three")
    assert await text_of(writer.journal) == "one two three"
    await assert_every_key_expires(writer.journal)


async def test_a_held_response_is_not_claimed(writer: Writer) -> None:
    """While a lease is alive nobody gets another, its own holder included."""
    before = await state(writer.journal)
    for owner in ("worker-1", "worker-2"):
        assert await Writer(writer.journal, owner).claim() == NotClaimed("held")
    assert await state(writer.journal) == before


async def test_an_expired_lease_is_anybodys(journal: Journal) -> None:
    """Nobody has to clean up after a worker that died."""
    assert isinstance(await Writer(journal).claim(lease_ms=1), Claimed)
    second = Writer(journal, "worker-2")

    async def claimed() -> bool:
        return isinstance(await second.claim(), Claimed)

    await wait_until_async(claimed, "the lease expires")  # type: ignore[arg-type]
    assert second.epoch // scripts.EPOCH_NONCES == 2


async def test_of_many_workers_one_gets_the_lease(redis_url: str, journal: Journal) -> None:
    """However many see the job at once."""
    async with open_wire(redis_url) as other:
        workers = [
            Writer(Journal((journal.wire, other)[number % 2], "r1"), f"w{number}") for number in range(20)
        ]
        claims = await asyncio.gather(*(worker.claim() for worker in workers))
    assert sum(isinstance(claim, Claimed) for claim in claims) == 1
    assert claims.count(NotClaimed("held")) == 19


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_what_has_ended_is_not_claimed(writer: Writer, status: str) -> None:
    """A job delivered twice is generated once."""
    await writer.close(status=status)
    assert await Writer(writer.journal, "worker-2").claim() == NotClaimed("done")


async def test_what_is_gone_is_not_claimed(wire: Wire) -> None:
    """A job may outlive its response; no key is made."""
    assert await Writer(Journal(wire, "nobody")).claim() == NotClaimed("gone")
    assert await wire.call("KEYS", "*") == []


async def test_a_renewal_prolongs_everything_and_tells_the_status(writer: Writer) -> None:
    """Lease, meta, journal and log: a long response does not expire under its writer."""
    journal = writer.journal
    await writer.write("a")
    for key in journal.keys[:4]:
        assert await call(journal, "EXPIRE", key, 5) == 1
    assert await writer.renew(status="paused", level=3) is False
    for key in journal.keys[:4]:
        assert await call(journal, "PTTL", key) > 50_000
    snapshot = await journal.snapshot()
    assert (snapshot.status, snapshot.meta["level"]) == ("paused", "3")
    await assert_every_key_expires(journal)


async def test_a_renewal_of_a_lost_lease_is_fenced(writer: Writer) -> None:
    """A worker that was stopped past its lease does not take it back from the next."""
    journal = writer.journal
    await call(journal, "DEL", journal.keys.lease)
    second = Writer(journal, "worker-2")
    await second.claim()
    before = await state(journal)
    with pytest.raises(Fenced):
        await writer.renew(status="paused")
    assert await writer.release() is False
    assert await state(journal) == before


async def test_a_lease_that_expired_unclaimed_is_renewed(writer: Writer) -> None:
    """Nobody has taken it meanwhile, so nothing is lost."""
    await call(writer.journal, "DEL", writer.journal.keys.lease)
    await writer.renew()
    assert await call(writer.journal, "GET", writer.journal.keys.lease) == b"worker-1"


async def test_a_renewal_of_what_is_gone_loses_the_stream(writer: Writer) -> None:
    """And makes no lease for it."""
    await call(writer.journal, "DEL", *writer.journal.keys[:4])
    with pytest.raises(StreamLost):
        await writer.renew()
    assert await call(writer.journal, "KEYS", "*") == []


async def test_a_renewal_does_not_revive_what_has_ended(writer: Writer) -> None:
    """A renewal that was on its way when the response closed finds it terminal and leaves it so."""
    await writer.close(finish_reason="stop")
    before = await state(writer.journal)
    assert await writer.renew() is False
    assert await state(writer.journal) == before
    assert (await writer.journal.snapshot()).status == "completed"
    assert await Writer(writer.journal, "worker-2").claim() == NotClaimed("done")


async def test_a_renewal_does_not_take_back_what_was_handed_over(writer: Writer) -> None:
    """The next worker need not wait for a lease that was given up."""
    await writer.release()
    assert await writer.renew() is False
    assert (await writer.journal.snapshot()).status == "queued"
    assert isinstance(await Writer(writer.journal, "worker-2").claim(), Claimed)


async def test_a_release_hands_over_at_once_and_only_once(writer: Writer) -> None:
    """The lease is free, the response queued; nobody else's lease can be released."""
    other = Writer(writer.journal, "worker-2")
    for other.epoch in (0, writer.epoch):
        assert await other.release() is False
    assert await writer.release() is True
    assert (await writer.journal.snapshot()).status == "queued"
    assert await writer.release() is False
    assert isinstance(await Writer(writer.journal, "worker-2").claim(), Claimed)


# --- cancel


async def test_a_cancel_is_heard_by_the_worker_and_noted_for_it(writer: Writer) -> None:
    """On the control channel, with its next append and its next renewal; asking twice is asking once."""
    journal = writer.journal
    heard: list[bytes] = []
    journal.wire.subscribe(journal.keys.control, heard.append)
    assert await scripts.cancel_response(journal.wire, journal.keys) == "running"
    before = await state(journal)
    assert await scripts.cancel_response(journal.wire, journal.keys) == "running"
    assert await state(journal) == before
    assert heard == [b"cancel", b"cancel"]
    data = encode(content("the last words"))
    assert await writer.append_at(0, data) == Appended(len(data), cancelled=True)
    assert await writer.append_at(0, data) == Appended(len(data), cancelled=True)
    assert await writer.renew() is True


async def test_a_cancel_before_any_worker_is_told_with_the_claim(journal: Journal) -> None:
    """Nothing is generated for it."""
    assert await scripts.cancel_response(journal.wire, journal.keys) == "queued"
    claimed = await Writer(journal).claim()
    assert isinstance(claimed, Claimed)
    assert claimed.cancelled


async def test_a_cancel_of_what_has_ended_changes_nothing(writer: Writer) -> None:
    """It answers how it ended."""
    await writer.close(status="failed")
    before = await state(writer.journal)
    assert await scripts.cancel_response(writer.journal.wire, writer.journal.keys) == "failed"
    assert await state(writer.journal) == before


async def test_a_cancel_of_what_is_not_there_says_so(wire: Wire) -> None:
    """And makes nothing."""
    journal = Journal(wire, "nobody")
    assert await scripts.cancel_response(wire, journal.keys) is None
    assert await wire.call("KEYS", "*") == []


# --- close


async def test_a_close_ends_it(writer: Writer) -> None:
    """The last record is there, the status is terminal, the lease and the request are gone."""
    journal = writer.journal
    await writer.write("all")
    head = await writer.close(finish_reason="stop", text_bytes="3")
    snapshot = await journal.snapshot()
    assert snapshot.head == head == writer.head + len(encode(DONE))
    assert (snapshot.status, snapshot.meta["finish_reason"]) == ("completed", "stop")
    assert snapshot.meta["text_bytes"] == "3"
    assert float(snapshot.meta["ended_at"]) >= float(snapshot.meta["created_at"])
    assert "request" not in snapshot.meta
    assert await call(journal, "EXISTS", journal.keys.lease) == 0
    *_, last = [placed async for slice_ in journal.read(0, head) for placed in slice_]
    assert last.record == DONE
    await assert_every_key_expires(journal)


async def test_a_close_repeated_changes_nothing(writer: Writer) -> None:
    """Its reply was lost: the retry answers the head, whatever it brings."""
    await writer.write("all")
    head = await writer.close()
    before = await state(writer.journal)
    assert await writer.close() == head
    assert await writer.close(status="failed", base=head, data=b"\x10x") == head
    assert await state(writer.journal) == before


@pytest.mark.parametrize("off_by", [-1, 1])
async def test_a_close_at_the_wrong_place_is_a_gap(writer: Writer, off_by: int) -> None:
    """Below the head an append had run whose reply was lost; above it bytes were lost."""
    head = await writer.write("all")
    before = await state(writer.journal)
    with pytest.raises(Gap) as gap:
        await writer.close(base=head + off_by)
    assert gap.value.head == head
    assert await state(writer.journal) == before


async def test_a_close_by_a_replaced_writer_is_fenced(writer: Writer) -> None:
    """Only the newest epoch may end a response."""
    await writer.release()
    await Writer(writer.journal, "worker-2").claim()
    before = await state(writer.journal)
    with pytest.raises(Fenced):
        await writer.close()
    assert await state(writer.journal) == before


async def test_a_close_of_what_is_gone_loses_the_stream(writer: Writer) -> None:
    """And makes no key."""
    await call(writer.journal, "DEL", *writer.journal.keys[:4])
    with pytest.raises(StreamLost):
        await writer.close()
    assert await call(writer.journal, "KEYS", "*") == []


async def test_terminal_status_and_terminal_record_are_seen_together(redis_url: str, writer: Writer) -> None:
    """Whoever looks in one transaction sees both or neither, at every moment of the writing."""
    journal, done = writer.journal, encode(DONE)
    seen: set[tuple[bool, bool]] = set()

    async def watch(wire: Wire) -> None:
        while (True, True) not in seen:
            wire.post("MULTI")
            wire.post("HGET", journal.keys.meta, "status")
            wire.post("GETRANGE", journal.keys.journal, -len(done), -1)
            status, tail = await wire.call("EXEC")
            seen.add((status == b"completed", tail == done))

    async with open_wire(redis_url) as other, asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(other))
        for number in range(20):
            await writer.write(f"{number}")
        await writer.close()
    assert seen == {(False, False), (True, True)}


async def test_a_close_rings_the_bell_when_all_of_it_is_there(writer: Writer) -> None:
    """A reader that is rung finds the terminal record and the terminal status."""
    journal = writer.journal
    rung: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    journal.wire.subscribe(journal.keys.bell, rung.set_result)
    head = await writer.close()
    assert await rung == b"%d" % head
    assert (await journal.snapshot()).status == "completed"


# --- attach


async def test_a_new_consumer_gets_everything_and_then_what_follows(writer: Writer) -> None:
    """History comes with the attach, live entries through the group; overlap ends at known offsets."""
    journal = writer.journal
    head = await writer.write("history")
    attached = await attach(journal)
    assert attached == Attached(0, head, "running", writer.epoch, writer.data, rewound=False)
    later = await writer.write(" and live")
    entries = await read(journal)
    assert [entry.end for entry in entries] == [head, later]
    assert b"".join(entry.data for entry in entries) == writer.data
    assert await read(journal) == []
    await assert_every_key_expires(journal)


async def test_a_consumer_may_come_before_the_first_byte(journal: Journal) -> None:
    """An empty log is made for it, which expires even if nobody ever writes."""
    attached = await attach(journal)
    assert attached == Attached(0, 0, "queued", 0, b"", rewound=False)
    await assert_every_key_expires(journal)
    writer = Writer(journal)
    await writer.claim()
    head = await writer.write("first")
    assert [entry.end for entry in await read(journal)] == [head]
    await assert_every_key_expires(journal)


async def test_an_attach_gives_no_more_than_its_limit(writer: Writer) -> None:
    """The rest is read from the journal; records may be cut."""
    await writer.write("a" * 100, "b" * 100)
    attached = await attach(writer.journal, limit=50)
    assert attached.data == writer.data[:50]
    assert attached.head == writer.head


@pytest.mark.parametrize("limit", [1, 7, 65_536])
async def test_a_position_gives_what_is_after_it(writer: Writer, limit: int) -> None:
    """From there to the head, and through the group every entry that ends after it."""
    first = await writer.write("one")
    second = await writer.write("two")
    await writer.write("three")
    attached = await attach(writer.journal, position=Position(first, writer.epoch), limit=limit)
    assert (attached.offset, attached.rewound) == (first, False)
    assert attached.data == writer.data[first : first + limit]
    assert [entry.end for entry in await read(writer.journal)] == [second, writer.head]


async def test_a_position_inside_an_entry_gives_that_entry_again(writer: Writer) -> None:
    """An entry may hold several records; the reader drops what it has."""
    inside = len(encode(content("one")))
    await writer.write("one", "two")
    attached = await attach(writer.journal, position=Position(inside, writer.epoch))
    assert attached.data == writer.data[inside:]
    assert [entry.data for entry in await read(writer.journal)] == [writer.data]


async def test_an_attach_repeated_leaves_the_same_state(writer: Writer) -> None:
    """Its reply was lost: the retry gives the same."""
    await writer.write("one")
    first = await attach(writer.journal)
    await read(writer.journal)
    again = await attach(writer.journal, position=Position(0, 0))
    assert again == first
    assert len(await read(writer.journal)) == 1


async def test_a_known_consumer_goes_on_after_what_it_confirmed(writer: Writer) -> None:
    """Read and confirmed is not given again; without a position the group knows."""
    journal = writer.journal
    first = await writer.write("one")
    await attach(journal)
    (entry,) = await read(journal)
    journal.post_ack("c", [entry.id])
    await writer.write("two")
    attached = await attach(journal, connection="2")
    assert (attached.offset, attached.data) == (first, writer.data[first:])


async def test_a_known_consumer_goes_back_to_its_oldest_unconfirmed_entry(writer: Writer) -> None:
    """Read and not confirmed may never have arrived: it is given again, from where it starts."""
    journal = writer.journal
    ends = [await writer.write(word) for word in ("one", "two", "three", "four")]
    await attach(journal)
    entries = await read(journal, count=3)
    journal.post_ack("c", [entries[0].id, entries[2].id])
    assert await position_of(journal) == ends[0]
    attached = await attach(journal, connection="2")
    assert (attached.offset, attached.data) == (ends[0], writer.data[ends[0] :])
    assert [entry.end for entry in await read(journal, connection="2")] == ends[1:]


async def test_a_known_consumer_whose_unconfirmed_entry_was_trimmed_starts_over(writer: Writer) -> None:
    """Where that entry began is not known any more, and a guess could cut a record: all of it, from 0."""
    journal = writer.journal
    for word in ("one", "two", "three", "four"):
        await writer.write(word)
    await attach(journal)
    entries = await read(journal, count=3)
    journal.post_ack("c", [entries[0].id])
    await call(journal, "XTRIM", journal.keys.log, "MAXLEN", 1)
    attached = await attach(journal, connection="2")
    assert (attached.offset, attached.data) == (0, writer.data)


async def test_a_known_consumer_that_read_across_a_trim_starts_over(writer: Writer) -> None:
    """What was trimmed unread before its oldest unconfirmed entry is unconfirmed too, and nowhere noted."""
    journal = writer.journal
    await attach(journal)
    for word in ("one", "two", "three"):
        await writer.write(word)
    await call(journal, "XTRIM", journal.keys.log, "MAXLEN", 1)
    (entry,) = await read(journal)  # and its node dies before it could repair the hole
    assert entry.end == writer.head
    attached = await attach(journal, connection="2")
    assert (attached.offset, attached.data) == (0, writer.data)


async def test_a_consumer_that_read_the_journal_goes_on_where_it_said(writer: Writer) -> None:
    """Behind the log there is nothing to acknowledge: the group's place is the position."""
    journal = writer.journal
    first = await writer.write("one")
    await writer.write("two")
    await attach(journal)
    journal.post_moved("c", first)
    assert await position_of(journal) == first
    attached = await attach(journal, connection="2")
    assert attached.offset == first


async def test_a_second_connection_takes_the_consumer_over(writer: Writer) -> None:
    """The first one's pending entries are gone, and it hears on the bell whose the consumer is now."""
    journal = writer.journal
    heard: list[bytes] = []
    await writer.write("one")
    await attach(journal, "c", "1")
    await read(journal, "c", "1")
    journal.wire.subscribe(journal.keys.bell, heard.append)
    attached = await attach(journal, "c", "2", Position(writer.head, writer.epoch))
    assert attached.data == b""
    members = await call(journal, "XINFO", "CONSUMERS", journal.keys.log, "c")
    assert heard == [b"attached c 2"]
    assert [(member[b"name"], member[b"pending"]) for member in members] == [(b"2", 0)]
    assert await position_of(journal) == writer.head


async def test_consumers_do_not_disturb_each_other(writer: Writer) -> None:
    """Each has its group: its own place, its own unconfirmed entries."""
    journal = writer.journal
    await writer.write("one")
    await attach(journal, "fast")
    await attach(journal, "slow")
    (entry,) = await read(journal, "fast")
    journal.post_ack("fast", [entry.id])
    assert [entry.end for entry in await read(journal, "slow")] == [writer.head]
    assert await position_of(journal, "fast") == writer.head
    assert await position_of(journal, "slow") == 0


async def test_a_position_in_lost_text_is_rewound_to_where_the_next_epoch_began(writer: Writer) -> None:
    """What it had from there on was never true: the reader is told, and gets what is."""
    journal = writer.journal
    kept = await writer.write("kept ")
    replica = await dump(journal)
    stale = Position(await writer.write("lost in a failover"), writer.epoch)
    await fail_over(journal, replica)
    await writer.release()
    second = Writer(journal, "worker-2")
    await second.claim()
    await second.write("new")
    attached = await attach(journal, position=stale)
    data = second.data[kept:]
    assert attached == Attached(kept, second.head, "running", second.epoch, data, rewound=True)
    assert [entry.data for entry in await read(journal)] == [data]


async def test_a_claim_that_a_failover_lost_leaves_nothing_behind(writer: Writer) -> None:
    """Its writer is fenced although the claim after it has its number; its readers start over, told so."""
    journal = writer.journal
    await writer.write("kept ")
    await writer.release()
    replica = await dump(journal)
    lost = Writer(journal, "worker-2")
    await lost.claim()
    stale = Position(await lost.write("lost in a failover"), lost.epoch)
    await fail_over(journal, replica)
    with pytest.raises(Fenced):
        await lost.write("before the next claim")
    third = Writer(journal, "worker-3")
    claimed = await third.claim()
    assert isinstance(claimed, Claimed)
    assert claimed.number == lost.epoch // scripts.EPOCH_NONCES
    for base in (0, len(replica), lost.head):
        with pytest.raises(Fenced):
            await lost.append_at(base, encode(content("after it")))
    with pytest.raises(Fenced):
        await lost.close()
    with pytest.raises(Fenced):
        await lost.renew()
    await third.write("new text, and longer than what was lost")
    attached = await attach(journal, position=stale)
    assert (attached.offset, attached.rewound, attached.data) == (0, True, third.data)


@pytest.mark.parametrize(
    ("position", "offset", "rewound"),
    [
        (Position(0, 0), 0, False),
        (Position(4, 1), 4, False),
        (Position(8, 1), 4, True),  # epoch 2 began at 4
        (Position(8, 2), 8, False),
        (Position(12, 2), 8, True),  # epoch 3 began at 8
        (Position(12, 1), 4, True),  # the earliest of all that came after
        (Position(12, 3), 12, False),
        (Position(4, 4), 0, True),  # there is no such epoch here
    ],
)
async def test_a_position_holds_under_its_epoch(
    writer: Writer, position: Position, offset: int, rewound: bool
) -> None:
    """Up to the first byte that a later epoch wrote, and no further. `position` has the claim's number."""
    epochs = [0, writer.epoch]
    for expected_start in (4, 8):
        await writer.write("abc")
        assert writer.head == expected_start
        await writer.release()
        await writer.claim()
        epochs.append(writer.epoch)
    await writer.write("abc")
    epochs.append(writer.epoch + 1)
    attached = await attach(writer.journal, position=Position(position.offset, epochs[position.epoch]))
    assert (attached.offset, attached.rewound) == (offset, rewound)
    assert attached.data == writer.data[offset:]


async def test_an_attach_to_what_is_gone_loses_the_stream(wire: Wire) -> None:
    """No log is made for a response that is not there."""
    with pytest.raises(StreamLost):
        await attach(Journal(wire, "nobody"))
    assert await wire.call("KEYS", "*") == []


async def test_a_response_has_a_bound_on_its_consumers(writer: Writer) -> None:
    """One more is refused with when to come back; a known one still attaches, and a place may come free."""
    journal = writer.journal
    await asyncio.gather(*(attach(journal, f"c{number}") for number in range(MAX_GROUPS)))
    with pytest.raises(Overloaded) as refused:
        await attach(journal, "one more")
    assert refused.value.retry_after_s is not None
    assert (await attach(journal, "c0", "2")).offset == 0
    assert len(await journal.consumers()) == MAX_GROUPS
    journal.post_detach("c0", "2", 0, keep=False)
    assert (await attach(journal, "one more")).offset == 0


async def test_a_finished_response_is_attached_like_any_other(writer: Writer) -> None:
    """Late readers get all of it and the terminal status."""
    await writer.write("all")
    head = await writer.close()
    attached = await attach(writer.journal)
    assert (attached.status, attached.head) == ("completed", head)
    assert attached.data == writer.data + encode(DONE)


# --- detach


async def test_a_detached_consumer_is_kept_where_its_client_is(writer: Writer) -> None:
    """Its unconfirmed entries are dropped, its place is what was confirmed, nobody is attached."""
    journal = writer.journal
    first = await writer.write("one")
    await writer.write("two")
    await attach(journal)
    await read(journal)
    journal.post_detach("c", "1", first, keep=True)
    (known,) = await journal.consumers()
    assert (known.id, known.position, known.pending, known.idle_ms) == ("c", first, 0, None)
    attached = await attach(journal, connection="2")
    assert attached.offset == first


async def test_a_consumer_without_a_name_is_forgotten(writer: Writer) -> None:
    """Nobody can come back as it."""
    await writer.write("one")
    await attach(writer.journal)
    writer.journal.post_detach("c", "1", 0, keep=False)
    assert await writer.journal.consumers() == []


@pytest.mark.parametrize("keep", [True, False])
async def test_a_detach_that_comes_late_does_not_touch_a_newer_connection(writer: Writer, keep: bool) -> None:
    """The reconnect was faster than the news of the disconnect."""
    journal = writer.journal
    await writer.write("one")
    await attach(journal, connection="1")
    await attach(journal, connection="2")
    await read(journal, connection="2")
    before = await call(journal, "XINFO", "GROUPS", journal.keys.log)
    journal.post_detach("c", "1", writer.head, keep=keep)
    assert await call(journal, "XINFO", "GROUPS", journal.keys.log) == before


@pytest.mark.parametrize("keep", [True, False])
async def test_a_detach_that_comes_late_does_not_touch_what_a_newer_connection_left(
    writer: Writer, keep: bool
) -> None:
    """The newer one has come and gone: its place holds, not the older one's."""
    journal = writer.journal
    first = await writer.write("one")
    await writer.write("two")
    await attach(journal, connection="1")
    await attach(journal, connection="2")
    journal.post_detach("c", "2", writer.head, keep=True)
    journal.post_detach("c", "1", first, keep=keep)
    (known,) = await journal.consumers()
    assert (known.position, known.idle_ms) == (writer.head, None)


@pytest.mark.parametrize("trimmed", ["never", "before its read", "after its read"])
async def test_what_a_replaced_connection_took_is_given_to_the_newer_one(
    writer: Writer, trimmed: str
) -> None:
    """Its last read was on its way when it was replaced: its detach puts the entries back.

    Across a trim it cannot be known where the group was: then it starts over.
    """
    journal = writer.journal
    first = await writer.write("one")
    await attach(journal, connection="1")
    await attach(journal, connection="2", position=Position(first, writer.epoch))
    ends = [await writer.write(word) for word in ("two", "three")]
    if trimmed == "before its read":
        await call(journal, "XTRIM", journal.keys.log, "MAXLEN", 1)
    taken = await read(journal, connection="1")
    assert [entry.end for entry in taken] == ends[-len(taken) :]
    assert await read(journal, connection="2") == []
    if trimmed == "after its read":
        await call(journal, "XTRIM", journal.keys.log, "MAXLEN", 1)
    journal.post_detach("c", "1", 0, keep=True)
    (known,) = await journal.consumers()
    assert (known.position, known.pending) == (first if trimmed == "never" else 0, 0)
    members = await call(journal, "XINFO", "CONSUMERS", journal.keys.log, "c")
    assert [member[b"name"] for member in members] == [b"2"]
    entries = await read(journal, connection="2")
    assert [entry.end for entry in entries] == (ends if trimmed == "never" else ends[1:])


async def test_a_connection_that_leaves_beside_a_replaced_one_loses_nothing(writer: Writer) -> None:
    """The newer one had the older entry unconfirmed, the replaced one the later: both are given again."""
    journal = writer.journal
    await writer.write("one")
    await attach(journal, connection="1")
    await attach(journal, connection="2")
    assert len(await read(journal, connection="2")) == 1
    await writer.write("two")
    assert len(await read(journal, connection="1")) == 1
    journal.post_detach("c", "2", 0, keep=True)
    assert await position_of(journal) == 0
    assert (await attach(journal, connection="3")).offset == 0


async def test_a_detach_from_what_is_gone_is_silent(journal: Journal) -> None:
    """No log, or no such consumer: nothing is made."""
    journal.post_detach("c", "1", 0, keep=True)
    assert await call(journal, "EXISTS", journal.keys.log) == 0
    await attach(journal, "other")
    journal.post_detach("c", "1", 0, keep=True)
    assert [known.id for known in await journal.consumers()] == ["other"]


# --- positions that came from outside


EVERY_KIND = [
    content("short"),
    Record(Channel.REASONING, "größer".encode()),
    event(Channel.TOOL_CALL, {"index": 0, "id": "t", "name": "f"}),
    Record(Channel.TOOL_ARGUMENTS, b"\x00{}"),
    content("x" * 300),
    event(Channel.NOTICE, {"kind": "live"}),
]


@pytest.mark.parametrize("trimmed_to", [1000, 2, 0])
async def test_exactly_the_ends_of_records_are_positions(writer: Writer, trimmed_to: int) -> None:
    """Every other offset is refused, whether the log still has the entry or the journal must be walked."""
    journal = writer.journal
    boundaries = {0}
    for number in range(0, len(EVERY_KIND), 2):
        pair = EVERY_KIND[number : number + 2]
        boundaries |= {writer.head + len(encode(pair[0])), await writer.write(*pair)}
    await call(journal, "XTRIM", journal.keys.log, "MAXLEN", trimmed_to)
    for offset in range(writer.head):
        if offset in boundaries:
            await journal.check_boundary(offset)
        else:
            with pytest.raises(Malformed, match=str(offset)):
                await journal.check_boundary(offset)
    await journal.check_boundary(writer.head)


async def test_of_text_that_is_gone_nothing_is_told(writer: Writer) -> None:
    """A failover, or a FLUSHALL, came after the look at the head: the position may have been right."""
    journal = writer.journal
    head = await writer.write("text")
    with pytest.raises(Unavailable):
        await journal.check_boundary(head + 1)
    await call(journal, "DEL", journal.keys.meta, journal.keys.log, journal.keys.journal)
    with pytest.raises(NotFound):
        await journal.check_boundary(head)


async def test_a_boundary_far_from_the_log_is_found_slice_by_slice(writer: Writer) -> None:
    """The walk holds 64 KiB at a time, and slices cut records."""
    journal = writer.journal
    for _ in range(40):
        await writer.write("x" * 8000)
    boundary = 38 * len(encode(content("x" * 8000)))
    await call(journal, "XTRIM", journal.keys.log, "MAXLEN", 1)
    await journal.check_boundary(boundary)
    with pytest.raises(Malformed):
        await journal.check_boundary(boundary + 1)


# --- who reads


async def test_consumers_are_told_with_position_and_idle_time(writer: Writer) -> None:
    """Confirmed, half confirmed, unconfirmed, detached: each as it is."""
    journal = writer.journal
    ends = [await writer.write(word) for word in ("one", "two", "three")]
    for name in ("done", "half", "none", "left"):
        await attach(journal, name)
    for name, confirmed in (("done", 3), ("half", 1), ("none", 0)):
        entries = await read(journal, name)
        if confirmed:
            journal.post_ack(name, [entry.id for entry in entries[:confirmed]])
    journal.post_detach("left", "1", ends[1], keep=True)
    known = {consumer.id: consumer for consumer in await journal.consumers()}
    assert {name: (consumer.position, consumer.pending) for name, consumer in known.items()} == {
        "done": (ends[2], 0),
        "half": (ends[0], 2),
        "none": (0, 3),
        "left": (ends[1], 0),
    }
    assert known["left"].idle_ms is None
    assert all(0 <= (known[name].idle_ms or 0) < 30_000 for name in ("done", "half", "none"))
    assert known["done"].idle_ms is not None


async def test_a_position_may_be_known_without_asking_the_log(writer: Writer) -> None:
    """The pump remembers where its entries start, also when they were trimmed."""
    journal = writer.journal
    first = await writer.write("one")
    second = await writer.write("two")
    await attach(journal)
    entries = await read(journal)
    journal.post_ack("c", [entries[0].id])
    await call(journal, "XTRIM", journal.keys.log, "MAXLEN", 0)
    asked: list[int] = []

    def start_of(end: int) -> int | None:
        asked.append(end)
        return first

    (known,) = await journal.consumers(start_of)
    assert (known.position, asked) == (first, [second])
    (known,) = await journal.consumers()
    assert known.position == second  # its end: the start is not to be had


async def test_a_consumer_that_may_not_read_stays_known_as_alive(writer: Writer) -> None:
    """Out of credit it says so by an empty read of its history, which takes nothing and confirms nothing."""
    journal = writer.journal
    await writer.write("one")
    await attach(journal)
    await read(journal)

    async def idle_ms() -> int:
        (known,) = await journal.consumers()
        assert known.idle_ms is not None
        return known.idle_ms

    async def idle_over_50_ms() -> bool:
        return await idle_ms() > 50

    second = await writer.write("two")
    await wait_until_async(idle_over_50_ms, "it has been quiet for 50 ms")  # type: ignore[arg-type]
    clock = asyncio.get_running_loop().time
    before_s = clock()
    assert not read_entries(await journal.send_seen("c", "1"))
    # It was seen since then, however long this took: else it would be 50 ms more.
    assert await idle_ms() <= (clock() - before_s) * 1000 + 20
    (known,) = await journal.consumers()
    assert (known.position, known.pending) == (0, 1)
    assert [entry.end for entry in await read(journal)] == [second]


async def test_a_group_that_goes_away_in_mid_question_makes_no_noise(
    writer: Writer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that detaches between two questions is told as far as it was known."""
    journal = writer.journal
    await writer.write("one")
    await attach(journal)
    await read(journal)
    ask: Callable[[Journal, dict[bytes, Any]], Any] = Journal._ask

    def forget_then_ask(self: Journal, group: dict[bytes, Any]) -> Any:
        self.post_detach("c", "1", 0, keep=False)
        return ask(self, group)

    monkeypatch.setattr(Journal, "_ask", forget_then_ask)
    (known,) = await journal.consumers()
    assert (known.position, known.idle_ms) == (writer.head, None)
    gc.collect()
    assert caplog.records == []


# --- text


async def test_the_text_is_the_content_alone(writer: Writer) -> None:
    """Reasoning, tool calls and notices are no part of it; each piece is whole UTF-8."""
    await writer.write(event(Channel.START, {"id": "r1"}), "größe ", Record(Channel.REASONING, b"hm"))
    await writer.write("→ 中文", DONE)
    pieces = [piece async for piece in writer.journal.text(writer.head)]
    assert b"".join(pieces).decode() == "größe → 中文"
    assert all(piece.decode() is not None for piece in pieces)


async def test_a_long_text_is_read_in_slices(writer: Writer) -> None:
    """No reply is larger than a slice, and no record is cut by one."""
    words = [f"{number:07} größe\n" * 100 for number in range(120)]
    for word in words:
        await writer.write(word)
    pieces = [piece async for piece in writer.journal.text(writer.head)]
    assert len(pieces) > 2
    assert max(map(len, pieces)) <= 65_536
    assert "".join(piece.decode() for piece in pieces) == "".join(words)


async def test_a_read_ends_where_the_journal_ends(writer: Writer) -> None:
    """And before a record that is not whole yet."""
    end = await writer.write("whole")
    await call(writer.journal, "APPEND", writer.journal.keys.journal, encode(content("cut"))[:-1])
    slices = [placed async for placed in writer.journal.read(0, 10_000)]
    assert [[item.end for item in slice_] for slice_ in slices] == [[end]]


# --- pressure


async def test_an_append_to_a_full_server_writes_nothing(redis_url: str, writer: Writer) -> None:
    """Neither log nor journal: the same append succeeds when there is room."""
    await writer.write("one")
    before = await state(writer.journal)
    with admin(redis_url) as client, out_of_memory(client), pytest.raises(OutOfMemory):
        await writer.write("two")
    assert await state(writer.journal) == before
    await writer.write("two")
    assert await text_of(writer.journal) == "onetwo"


async def test_a_full_server_takes_no_new_work(redis_url: str, wire: Wire) -> None:
    """Opening and claiming need memory that is not there."""
    queued, fresh = Journal(wire, "queued"), Journal(wire, "fresh")
    assert await queued.open(retention_s=RETENTION_S) is not None
    with admin(redis_url) as client, out_of_memory(client):
        with pytest.raises(OutOfMemory):
            await fresh.open(retention_s=RETENTION_S)
        with pytest.raises(OutOfMemory):
            await Writer(queued).claim()
    assert (await queued.snapshot()).status == "queued"


async def test_a_full_server_still_serves_readers(redis_url: str, writer: Writer) -> None:
    """They come, read, confirm, are replaced and go: what they drain is what waits to be freed."""
    journal = writer.journal
    ends = [await writer.write(word) for word in ("one", "two")]
    with admin(redis_url) as client, out_of_memory(client):
        assert (await attach(journal)).data == writer.data
        (entry,) = await read(journal, count=1)
        journal.post_ack("c", [entry.id])
        attached = await attach(journal, connection="2")
        assert (attached.offset, attached.data) == (ends[0], writer.data[ends[0] :])
        assert [entry.end for entry in await read(journal, connection="2")] == ends[1:]
        journal.post_detach("c", "2", ends[1], keep=True)
        assert await position_of(journal) == ends[1]


async def test_a_full_server_still_lets_work_end(redis_url: str, writer: Writer) -> None:
    """To renew, hand over, cancel and close costs next to nothing, and is how memory comes back."""
    journal = writer.journal
    await writer.write("one")
    with admin(redis_url) as client, out_of_memory(client):
        assert await scripts.cancel_response(journal.wire, journal.keys) == "running"
        assert await writer.renew() is True
        assert await writer.close(status="cancelled") > writer.head
    assert (await journal.snapshot()).status == "cancelled"
    second = Writer(Journal(journal.wire, "r2"))
    await second.journal.open(retention_s=RETENTION_S)
    await second.claim()
    with admin(redis_url) as client, out_of_memory(client):
        assert await second.release() is True
