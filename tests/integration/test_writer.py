"""The writer on a real server: when records leave, in what entries, and what it does when Redis will not."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from redis import Redis

from relay import scripts
from relay.errors import Fenced, Refused, RelayError, StreamLost
from relay.events import HEADER_MAX, MAX_PAYLOAD, PIECE, Channel, Record, content, encode, event
from relay.journal import Entry, Journal, read_entries
from relay.scripts import APPEND, Claimed
from relay.wire import Wire, open_wire
from tests.support.model_reader import ModelReader
from tests.support.proxy import Proxy, proxy
from tests.support.servers import out_of_memory, writes_paused
from tests.support.wait import wait_until_async as until
from workers import writer as writer_module
from workers.metrics import Metrics
from workers.writer import KEPT_BYTES, Writer

RETENTION_S = 600
LONG_S = 300.0  # an interval that no test waits for
AN_APPEND = APPEND.sha.encode()
TEXT = "Grüße, 世界 🌊 "


@dataclass
class Desk:
    """A writer at work on a response, and what it told."""

    journal: Journal
    claimed: Claimed
    metrics: Metrics = field(default_factory=Metrics)
    stops: list[str | RelayError] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)

    def writer(self, *, flush_s: float = 0.0, cap: int = 1000) -> Writer:
        """A writer under the epoch that was claimed."""
        made = Writer(
            self.journal,
            epoch=self.claimed.epoch,
            head=self.claimed.head,
            cap=cap,
            retention_s=RETENTION_S,
            flush_s=flush_s,
            metrics=self.metrics,
            on_stop=self.stops.append,
        )
        self.writers.append(made)
        return made

    async def entries(self) -> list[Entry]:
        """The log, as it is."""
        return read_entries(await self.journal.wire.call("XRANGE", self.journal.keys.log, "-", "+"))

    async def head(self) -> int:
        """How long the journal is."""
        length: int = await self.journal.wire.call("STRLEN", self.journal.keys.journal)
        return length

    async def text(self) -> str:
        """The content."""
        return b"".join([piece async for piece in self.journal.text(await self.head())]).decode()

    async def ended(self) -> RelayError:
        """What ended the writer, once it has been told."""
        await until(lambda: self.stops, "the writer says that it has ended")
        assert len(self.stops) == 1
        (stop,) = self.stops
        assert isinstance(stop, RelayError)
        assert self.writers[0].ended is stop
        return stop

    async def assert_whole(self) -> None:
        """The log, read as a reader reads it, is the journal, and every key expires."""
        reader = ModelReader()
        for entry in await self.entries():
            assert reader.take_entry(entry.end, entry.data) is None
        assert reader.received == await self.journal.send_range(0, 10_000_000)


async def claim(wire: Wire, owner: str = "w1") -> Claimed:
    """The lease of the response `r1`."""
    claimed = await scripts.claim_response(
        wire, Journal(wire, "r1").keys, owner=owner, lease_ms=60_000, retention_s=RETENTION_S
    )
    assert isinstance(claimed, Claimed)
    return claimed


async def sit_down(wire: Wire) -> Desk:
    """A response opened and claimed."""
    await scripts.load(wire)
    journal = Journal(wire, "r1")
    assert await journal.open(retention_s=RETENTION_S, model="simulated", request="{}")
    return Desk(journal, await claim(wire))


@pytest.fixture
async def line(embedded_url: str) -> AsyncIterator[Proxy]:
    """What loses commands and replies between the writer and the server."""
    async with proxy(embedded_url) as line:
        yield line


@pytest.fixture
async def desk(line: Proxy) -> AsyncIterator[Desk]:
    """A desk whose wire goes through the proxy."""
    async with open_wire(line.url, name="writer-test") as wire:
        desk = await sit_down(wire)
        yield desk
        for writer in desk.writers:
            writer.stop()


async def drained(writer: Writer) -> None:
    """Everything fed is in Redis, within the time of a test."""
    async with asyncio.timeout(30):
        await writer.drain()


# --- when records leave


async def test_the_first_record_goes_at_once(desk: Desk) -> None:
    """Nobody waits for the flush interval to see that something happens."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content("first")])
    await until(lambda: writer.head > 0, "the first record is acknowledged")
    assert await desk.text() == "first"


async def test_what_is_to_go_at_once_waits_for_no_interval(desk: Desk) -> None:
    """The first token comes right after the start; what follows it waits again."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content("start")])
    writer.feed([content(" first")], at_once=True)  # the append before it is still in flight
    await until(lambda: writer.head == writer.produced, "both are acknowledged")
    writer.feed([content(" second")])
    assert len(await desk.entries()) == 2
    assert writer.head < writer.produced


async def test_after_the_first_there_is_a_floor_on_the_interval(desk: Desk) -> None:
    """What comes within the interval waits for its end and leaves as one entry."""
    writer = desk.writer(flush_s=0.1)
    # All in one turn: on a busy machine the interval might be over before the next.
    for text in ("a", "b", "c", "d"):
        writer.feed([content(text)])
    first_at = writer.sent_at
    await until(lambda: writer.head == writer.produced, "all is acknowledged")
    assert writer.sent_at - first_at >= 0.095  # timers tick in milliseconds
    assert [entry.data for entry in await desk.entries()] == [encode(content("a")), encode(content("bcd"))]


async def test_what_comes_within_the_interval_waits_for_its_end(desk: Desk) -> None:
    """Also when the append before it has long been acknowledged."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content("a")])
    await until(lambda: writer.head > 0, "the first record is acknowledged")
    for text in ("b", "c", "d"):
        writer.feed([content(text)])
        await asyncio.sleep(0)
    assert desk.journal.wire.inflight == 0
    writer._sent_at -= LONG_S
    writer.feed([content("e")])
    await until(lambda: writer.head == writer.produced, "the rest is acknowledged")
    assert [entry.data for entry in await desk.entries()] == [encode(content("a")), encode(content("bcde"))]


async def test_a_record_after_a_quiet_interval_goes_at_once(desk: Desk) -> None:
    """The floor counts from the last append, not from the record."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content("a")])
    await until(lambda: writer.head > 0, "the first record is acknowledged")
    writer._sent_at -= LONG_S
    writer.feed([content("b")])
    await until(lambda: writer.head == writer.produced, "the second is acknowledged")
    assert len(await desk.entries()) == 2


async def test_a_whole_entry_s_worth_does_not_wait(desk: Desk) -> None:
    """The interval is there to make entries large; one that is large enough goes."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content("a")])
    await until(lambda: writer.head > 0, "the first record is acknowledged")
    writer.feed([content("b" * MAX_PAYLOAD)])
    await until(lambda: writer.head > MAX_PAYLOAD - PIECE, "the large one is acknowledged")


async def test_what_gathers_while_an_append_is_in_flight_leaves_as_one_entry(
    desk: Desk, redis: Redis
) -> None:
    """A slow server gets fewer and larger appends, not more of them at once."""
    writer = desk.writer()
    with writes_paused(redis):
        writer.feed([content("first")])
        for index in range(50):
            writer.feed([content(f" {index}")])
            await asyncio.sleep(0)
        assert desk.journal.wire.inflight == 1
    await drained(writer)
    assert [entry.data for entry in await desk.entries()] == [
        encode(content("first")),
        encode(content("".join(f" {index}" for index in range(50)))),
    ]
    assert desk.metrics.appends == 2


async def test_only_neighbours_of_one_channel_merge(desk: Desk, redis: Redis) -> None:
    """Events stay whole and in their place, and the order of the channels is kept."""
    notice = event(Channel.NOTICE, {"kind": "paused"})
    fed = [
        Record(Channel.REASONING, b"so "),
        Record(Channel.REASONING, b"then"),
        content("a"),
        notice,
        content("b"),
        content("c"),
        Record(Channel.TOOL_ARGUMENTS, b"\0{"),
        Record(Channel.TOOL_ARGUMENTS, b"\0}"),
        Record(Channel.TOOL_ARGUMENTS, b"\1{}"),
    ]
    writer = desk.writer()
    with writes_paused(redis):
        writer.feed([content("first")])
        writer.feed(fed)
    await drained(writer)
    (_, entry) = await desk.entries()
    reader = ModelReader()
    reader.take(entry.data)
    assert reader.records == [
        Record(Channel.REASONING, b"so then"),
        content("a"),
        notice,
        content("bc"),
        Record(Channel.TOOL_ARGUMENTS, b"\0{}"),
        Record(Channel.TOOL_ARGUMENTS, b"\1{}"),
    ]


@pytest.mark.parametrize("seed", range(3))
async def test_no_entry_is_over_the_bound_and_nothing_is_lost_or_reordered(desk: Desk, seed: int) -> None:
    """Whatever is fed, in whatever portions: entries of one record's bound at the most, text in pieces."""
    dice = random.Random(seed)
    writer = desk.writer()
    fed: list[Record] = []
    for _ in range(60):
        portion = [_a_record(dice) for _ in range(dice.randrange(1, 6))]
        fed += portion
        writer.feed(portion)
        if dice.random() < 0.3:
            await asyncio.sleep(0)
    await drained(writer)
    entries = await desk.entries()
    assert max(len(entry.data) for entry in entries) <= MAX_PAYLOAD + HEADER_MAX
    whole, read = ModelReader(), ModelReader()
    whole.take(b"".join(encode(record) for record in fed))
    for entry in entries:
        assert read.take_entry(entry.end, entry.data) is None
    assert read.texts == whole.texts
    assert all(len(record.payload) <= PIECE for record in read.records if record.channel is Channel.CONTENT)
    assert writer.produced == writer.head == read.sent
    await desk.assert_whole()


def _a_record(dice: random.Random) -> Record:
    if dice.random() < 0.1:
        return event(Channel.NOTICE, {"kind": "live", "reason": "x" * dice.randrange(8000)})
    text = TEXT * dice.choice((1, 1, 1, 5, 50, 300))
    return Record(dice.choice((Channel.CONTENT, Channel.REASONING)), text.encode())


async def test_an_entry_has_the_id_of_its_end_and_epoch(desk: Desk) -> None:
    """The log is capped as told, and every key expires."""
    writer = desk.writer(cap=16)
    for index in range(400):
        writer.feed([content(f"{index} ")])
        await drained(writer)
    entries = await desk.entries()
    assert [entry.id for entry in entries] == [
        b"%d-%d" % (entry.end, desk.claimed.epoch) for entry in entries
    ]
    assert 16 <= len(entries) < 400
    assert await desk.text() == "".join(f"{index} " for index in range(400))


# --- drain


async def test_a_drain_does_not_wait_for_the_interval(desk: Desk) -> None:
    """What ends a response goes at once."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content("a")])
    await until(lambda: writer.head > 0, "the first record is acknowledged")
    writer.feed([content("b")])
    await drained(writer)
    assert await desk.text() == "ab"


async def test_a_drain_of_nothing_returns_at_once(desk: Desk) -> None:
    """A response may end without a record of its own."""
    await drained(desk.writer())
    assert await desk.head() == 0


async def test_a_drain_waits_for_more_than_one_entry(desk: Desk) -> None:
    """All of it, however many appends that takes."""
    writer = desk.writer(flush_s=LONG_S)
    writer.feed([content(TEXT * 200) for _ in range(20)])
    await drained(writer)
    assert await desk.text() == TEXT * 4000
    assert len(await desk.entries()) > 5


async def test_a_drain_goes_on_where_a_cancelled_one_stopped(desk: Desk, redis: Redis) -> None:
    """Whoever waited may give up; the records leave all the same."""
    writer = desk.writer(flush_s=LONG_S)
    with writes_paused(redis):
        writer.feed([content("a")])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await writer.drain()
    await drained(writer)
    assert await desk.text() == "a"


# --- what Redis does not say, or says no to


@pytest.mark.usefixtures("quick_retries")
async def test_a_lost_reply_is_retried_without_a_duplicate(desk: Desk, line: Proxy) -> None:
    """The append ran, the connection broke before its reply: the retry finds the bytes there."""
    writer = desk.writer()
    writer.feed([content("a")])
    await drained(writer)
    line.lose_reply(AN_APPEND)
    writer.feed([content("b")])
    await drained(writer)
    assert line.lost == 1
    assert desk.metrics.append_failures >= 1
    writer.feed([content("c")])
    await drained(writer)
    assert await desk.text() == "abc"
    assert [entry.data for entry in await desk.entries()] == [encode(content(text)) for text in "abc"]
    assert desk.stops == []


@pytest.mark.usefixtures("quick_retries")
async def test_a_lost_append_is_sent_again(desk: Desk, line: Proxy) -> None:
    """The connection broke before the command arrived: it is not there, and the retry writes it."""
    writer = desk.writer()
    line.lose_command(AN_APPEND)
    writer.feed([content("a")])
    await until(lambda: line.lost, "the append is lost")
    writer.feed([content("b")])
    await drained(writer)
    assert await desk.text() == "ab"
    assert desk.metrics.append_failures >= 1
    await desk.assert_whole()


@pytest.mark.usefixtures("quick_retries")
async def test_text_gathers_while_there_is_no_connection(desk: Desk, line: Proxy) -> None:
    """Nothing is lost, and nothing is said but in the metrics; it leaves with the next connection."""
    writer = desk.writer()
    writer.feed([content("before")])
    await drained(writer)
    line.turns_away = True
    line.cut()
    await until(lambda: not desk.journal.wire.is_connected, "the break")
    for index in range(20):
        writer.feed([content(f" {index}")])
    await until(lambda: desk.metrics.append_failures > 3, "some tries")
    line.turns_away = False
    await drained(writer)
    assert await desk.text() == "before" + "".join(f" {index}" for index in range(20))
    assert desk.stops == []


async def test_retries_back_off(desk: Desk, line: Proxy) -> None:
    """Twice as long each time, and at most a second: a server in trouble is not hammered."""
    writer = desk.writer()
    waits: list[float] = []
    later = writer._try_later

    def noted(error: RelayError) -> None:
        waits.append(writer._retry_s)
        writer._retry_s = min(writer._retry_s, writer_module._RETRY_LAST_S) / 1000  # do not wait for it
        later(error)
        writer._retry_s = min(waits[-1] * 2, writer_module._RETRY_LAST_S)

    writer._try_later = noted  # type: ignore[method-assign]
    line.turns_away = True
    line.cut()
    await until(lambda: not desk.journal.wire.is_connected, "the break")
    writer.feed([content("a")])
    await until(lambda: len(waits) >= 8, "eight tries")
    assert waits[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert all(0 < late - early <= late / 2 or late == 1.0 for early, late in pairwise(waits[:8]))
    line.turns_away = False
    await drained(writer)
    assert writer._retry_s == 0.05


@pytest.mark.usefixtures("quick_retries")
async def test_a_server_at_maxmemory_is_waited_for(desk: Desk, redis: Redis) -> None:
    """Pressure is no failure: nothing is lost, the metric says so, and it goes on when there is memory."""
    writer = desk.writer()
    writer.feed([content("before")])
    await drained(writer)
    with out_of_memory(redis):
        writer.feed([content(" during")])
        await until(lambda: desk.metrics.out_of_memory >= 2, "refused, and tried again")
        writer.feed([content(" and")])
        assert await desk.text() == "before"
    writer.feed([content(" after")])
    await drained(writer)
    assert await desk.text() == "before during and after"
    assert desk.stops == []
    await desk.assert_whole()


@pytest.mark.usefixtures("quick_retries")
async def test_a_server_that_forgot_the_script_is_given_it_again(desk: Desk, redis: Redis) -> None:
    """SCRIPT FLUSH in mid-stream is not noticed by anybody."""
    writer = desk.writer()
    writer.feed([content("before")])
    await drained(writer)
    redis.script_flush()
    writer.feed([content(" after")])
    await drained(writer)
    assert await desk.text() == "before after"
    assert redis.script_exists(APPEND.sha) == [True]
    assert desk.stops == []


# --- what Redis lost


async def dump(journal: Journal) -> dict[str, bytes]:
    """The response as it is now, to be brought back by `fail_over`."""
    dumps = {key: await journal.wire.call("DUMP", key) for key in journal.keys[:4]}
    return {key: value for key, value in dumps.items() if value is not None}


async def fail_over(journal: Journal, dumps: dict[str, bytes]) -> None:
    """What a failover to a replica that was behind leaves: the response as it was at `dump`."""
    await journal.wire.call("DEL", *journal.keys[:4])
    for key, value in dumps.items():
        await journal.wire.call("RESTORE", key, RETENTION_S * 1000, value)


async def test_what_a_failover_lost_is_sent_again(desk: Desk) -> None:
    """The same bytes at the same offsets in the same entries; the metric counts them."""
    writer = desk.writer()
    for index in range(10):
        writer.feed([content(f"{index} ")])
        await drained(writer)
    replica = await dump(desk.journal)
    for index in range(10, 30):
        writer.feed([content(f"{index} ")])
        await drained(writer)
    entries, lost = await desk.entries(), await desk.head()
    await fail_over(desk.journal, replica)
    lost -= await desk.head()
    assert lost > 0
    writer.feed([content("30 ")])
    await drained(writer)
    assert await desk.text() == "".join(f"{index} " for index in range(31))
    again = await desk.entries()
    assert [entry[:4] for entry in again[:-1]] == [entry[:4] for entry in entries]
    assert desk.metrics.resent_bytes == lost
    assert desk.stops == []
    await desk.assert_whole()


async def test_all_of_it_is_sent_again_when_all_of_the_text_is_gone(desk: Desk) -> None:
    """The meta was replicated and no text was."""
    replica = await dump(desk.journal)
    writer = desk.writer()
    for index in range(5):
        writer.feed([content(f"{index} ")])
        await drained(writer)
    await fail_over(desk.journal, replica)
    writer.feed([content("5 ")])
    await drained(writer)
    assert await desk.text() == "0 1 2 3 4 5 "
    await desk.assert_whole()


async def test_text_that_is_no_longer_kept_cannot_be_sent_again(desk: Desk) -> None:
    """Then the response is lost, and that is said: a hole is never spliced over."""
    replica = await dump(desk.journal)
    writer = desk.writer()
    for _ in range(2 * KEPT_BYTES // MAX_PAYLOAD):
        writer.feed([content("x" * MAX_PAYLOAD)])
        await drained(writer)
    assert writer._kept_bytes <= KEPT_BYTES + 2 * MAX_PAYLOAD
    await fail_over(desk.journal, replica)
    writer.feed([content("more")])
    with pytest.raises(StreamLost, match="kept are those from"):
        await drained(writer)
    assert isinstance(await desk.ended(), StreamLost)
    assert await desk.head() == 0


async def test_a_journal_that_ends_inside_an_entry_ends_the_writer(desk: Desk, redis: Redis) -> None:
    """No failover leaves that, so nothing can be sent again; and nobody tries for ever."""
    writer = desk.writer()
    with writes_paused(redis):
        writer.feed([content("a")])
        writer.feed([content("b"), event(Channel.NOTICE, {"kind": "live"}), content("c")])
    await drained(writer)
    first, second = await desk.entries()
    journal = await desk.journal.send_range(0, second.end)
    await desk.journal.wire.call("SET", desk.journal.keys.journal, journal[: first.end + 2], "EX", 60)
    writer.feed([content("d")])
    with pytest.raises(StreamLost):
        await drained(writer)
    assert isinstance(await desk.ended(), StreamLost)


async def test_a_flush_ends_the_writer(desk: Desk, redis: Redis) -> None:
    """The response's keys are gone: there is nothing to append to."""
    writer = desk.writer()
    writer.feed([content("a")])
    await drained(writer)
    redis.flushall()
    writer.feed([content("b")])
    with pytest.raises(StreamLost):
        await drained(writer)
    assert isinstance(await desk.ended(), StreamLost)
    writer.feed([content("c")])
    with pytest.raises(StreamLost):
        await drained(writer)
    assert redis.dbsize() == 0


async def test_a_newer_epoch_ends_the_writer(desk: Desk, redis: Redis) -> None:
    """Another worker has taken over: nothing more of this one gets in."""
    writer = desk.writer()
    writer.feed([content("mine")])
    await drained(writer)
    redis.delete(desk.journal.keys.lease)
    assert (await claim(desk.journal.wire, "w2")).number == 2
    writer.feed([content(" too late")])
    with pytest.raises(Fenced):
        await drained(writer)
    assert isinstance(await desk.ended(), Fenced)
    assert await desk.text() == "mine"


async def test_a_log_that_redis_refuses_to_write_ends_the_writer(desk: Desk, redis: Redis) -> None:
    """A key of another type stands where the log was: retrying cannot help."""
    redis.set(desk.journal.keys.log, "not a stream", ex=60)
    writer = desk.writer()
    writer.feed([content("a")])
    with pytest.raises(Refused, match="WRONGTYPE"):
        await drained(writer)
    assert isinstance(await desk.ended(), Refused)


# --- cancel, stop, and what it remembers


async def test_a_wish_to_cancel_is_heard_with_the_next_append(desk: Desk, redis: Redis) -> None:
    """Also where the control channel's message was lost; what was appended stays."""
    writer = desk.writer()
    redis.hset(desk.journal.keys.meta, "cancel", "1")
    writer.feed([content("a")])
    await until(lambda: desk.stops, "the wish is heard")
    assert desk.stops == ["cancelled"]
    assert writer.ended is None
    writer.feed([content("b")])
    await drained(writer)
    assert await desk.text() == "ab"


async def test_nothing_is_sent_after_a_stop(desk: Desk, redis: Redis) -> None:
    """Not what has gathered, not by a timer that runs, and not by a reply that comes."""
    writer = desk.writer(flush_s=0.01)
    with writes_paused(redis):
        writer.feed([content("a")])
        writer.feed([content("b")])
        writer.stop()
    with pytest.raises(Fenced, match="stopped"):
        await writer.drain()
    await until(lambda: not desk.journal.wire.inflight, "the append in flight is answered")
    late = desk.writer(flush_s=0.01)
    late.stop()
    late.feed([content("c")])
    assert desk.journal.wire.inflight == 0
    assert await desk.text() == "a"
    assert desk.stops == []


async def test_a_stop_wakes_whoever_drains(desk: Desk, redis: Redis) -> None:
    """No task waits for a writer that has been told to let go."""
    writer = desk.writer()
    with writes_paused(redis):
        writer.feed([content("a")])
        draining = asyncio.create_task(writer.drain())
        await until(lambda: writer._drained is not None, "somebody drains")
        writer.stop()
        with pytest.raises(Fenced):
            async with asyncio.timeout(10):
                await draining


async def test_it_knows_where_its_entries_start(desk: Desk) -> None:
    """So that a reader's oldest unconfirmed entry need not be looked up; of others it says nothing."""
    writer = desk.writer()
    for index in range(5):
        writer.feed([content("x" * 10 * (index + 1))])
        await drained(writer)
    entries = await desk.entries()
    assert [writer.start_of(entry.end) for entry in entries] == [
        entry.end - len(entry.data) for entry in entries
    ]
    assert [writer.start_of(end) for end in (0, entries[0].end - 1, entries[-1].end + 1)] == [None] * 3


async def test_what_is_kept_for_a_resend_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes and in entries; what Redis has not acknowledged is kept in any case."""
    monkeypatch.setattr(writer_module, "KEPT_ENTRIES", 5)
    writer = desk.writer()
    for _ in range(20):
        writer.feed([content("x")])
        await drained(writer)
    assert len(writer._kept) == 5
    assert sum(len(data) for _, data in writer._kept) == writer._kept_bytes
