"""One consumer and its races: nothing lost, nothing twice, never more than its credit, never a torn read."""

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from api import sse
from api.ending import Ending
from api.response import EventStream
from api.stream import Consumer
from relay import scripts
from relay.errors import OutOfMemory, Overloaded, Refused, StreamLost, Unavailable
from relay.events import Channel, content, decode, encode, event
from relay.journal import Journal
from relay.keys import keys_of
from relay.link import Argument
from relay.position import Position
from relay.scripts import Attached
from relay.wire import Wire, open_wire
from tests.support.consumer import ID, FakeSocket, Rig, Served, offset_of
from tests.support.fake_server import LAST_SEQUENCE, FakeServer, FakeWire
from tests.support.response_machine import ResponseMachine


def live_rig(**options: Any) -> Rig:
    """A consumer that follows the log: its first entry is read, taken and confirmed."""
    rig = Rig(**options)
    rig.begin()
    rig.append("0")
    rig.settle()
    assert rig.consumer.live
    return rig


def in_order(rig: Rig) -> bool:
    """Whether the client was sent exactly the response so far, or a beginning of it, in order and once."""
    return rig.made.startswith(rig.received) and rig.ids == sorted(set(rig.ids))


# --- from history to live


def test_what_was_there_comes_with_the_attach() -> None:
    """A consumer starts with the bytes that the attach gave: not one command more for a short history."""
    rig = Rig()
    rig.append("Hello, ", "world", ring=False)
    rig.begin()
    assert rig.received == "Hello, world"
    assert rig.wire.commands == []


def test_a_ring_before_the_beginning_is_not_lost() -> None:
    """What is appended between the attach and the start is read after the start, though its ring is gone."""
    rig = Rig()
    rig.append("a", ring=False)
    attached = rig.attach()
    rig.append("b")
    rig.wire.deliver()
    assert rig.wire.commands == []  # nothing is read for a consumer that has not begun
    rig.consumer.begin(attached)
    rig.settle()
    assert rig.received == "ab"


def test_an_old_ring_reads_nothing() -> None:
    """A ring about what the attach has brought already costs no read."""
    rig = Rig()
    rig.append("a")
    rig.begin()
    rig.wire.deliver()
    assert rig.wire.reads == []


def test_it_goes_on_from_its_position() -> None:
    """A consumer that comes back with an id gets what follows it, and no byte before."""
    rig = Rig()
    rig.append("one ")
    rig.append("two ")
    rig.begin(Position(rig.placed[0].end, 1))
    rig.append("three")
    rig.settle()
    assert rig.received == "two three"
    assert rig.ids[0] > rig.placed[0].end


def test_a_rewind_is_told_before_the_text() -> None:
    """A position in text that a failover lost: the client is told where to go back to, then gets the text."""
    rig = Rig()
    rig.append("kept")
    rig.another_worker()
    kept = len(rig.server.journal)
    rig.append("new")
    rig.begin(Position(kept + 50, 1))
    first, second = rig.socket.events
    assert (first.event, json.loads(first.data), first.id) == ("rewind", {"position": f"{kept}-2"}, None)
    assert json.loads(second.data)["text"] == "new"


def test_history_longer_than_the_credit_is_read_in_its_pieces() -> None:
    """A long history waits in the journal: the client gets it as it takes it, from reads of its credit."""
    rig = Rig(size=4096)
    for _ in range(100):
        rig.append("0123456789" * 20, ring=False)
    rig.begin()
    assert rig.consumer.ledger.unconfirmed <= 4096
    rig.settle()
    assert rig.received == rig.made
    assert rig.wire.named("GETRANGE")


# --- live


def test_duplicates_are_skipped() -> None:
    """Going live reads once more what is on its way, for its acknowledgement, and does not write it again."""
    rig = Rig()
    rig.append("a")
    rig.append("b")
    rig.begin()
    rig.append("c")
    rig.wire.deliver()
    rig.wire.execute()
    rig.wire.deliver()
    assert rig.consumer.live
    assert rig.consumer.ledger.pending == 3
    assert rig.received == "abc"
    rig.settle()
    assert rig.server.groups[b"c"].pending == []


def test_rings_during_a_read_make_one_more_read() -> None:
    """At most one read is in flight: what rings meanwhile is fetched by the next, all of it together."""
    rig = live_rig()
    before = len(rig.wire.reads)
    rig.append("a")
    rig.wire.deliver()
    rig.wire.execute()
    for text in "bcdef":
        rig.append(text)
        rig.wire.coming.rotate(1)  # the ring overtakes the reply
        rig.wire.deliver(1)
        assert rig.wire.reads_in_flight == 1
    rig.settle()
    assert len(rig.wire.reads) - before == 2
    assert rig.received == "0abcdef"


def test_a_hole_that_the_cap_made_is_read_from_the_journal() -> None:
    """Entries trimmed before they were read are no loss: the journal has the text, and a metric counts it."""
    rig = live_rig()
    for text in "abcd":
        rig.append(text, ring=False)
    rig.trim(3)
    rig.append("e")
    rig.settle()
    assert rig.received == "0abcde"
    assert in_order(rig)
    assert rig.metrics.trims_repaired == 1


def test_its_place_in_redis_follows_what_came_by_the_journal() -> None:
    """A reader that went to the journal for want of room has no place in the log that stays behind it."""
    rig = live_rig(size=1000)
    for _ in range(30):
        rig.append("x" * 900)
        rig.settle()
    rig.append("y" * 300)
    rig.settle(take=False)
    rig.append("z")
    rig.settle(take=False)
    rig.settle()
    assert rig.consumer.ledger.confirmed == len(rig.server.journal)
    assert rig.server.position(b"c") == len(rig.server.journal)


def test_a_lost_ring_is_found_by_the_sweep() -> None:
    """A ring that never came delays the text by a sweep, live or behind, and does not lose it."""
    rig = live_rig()
    rig.append("a", ring=False)
    rig.sweep()
    rig.settle()
    assert rig.received == "0a"
    rig.consumer.live = False
    rig.append("b", ring=False)
    rig.sweep()
    rig.settle()
    assert rig.received == "0ab"


def test_a_lost_ring_is_found_with_a_small_window() -> None:
    """The sweep finds a lost ring also where the usual entry is larger than the whole credit."""
    rig = live_rig(size=64)
    rig.append("x" * 200)
    rig.settle()
    rig.append("the last", ring=False)
    rig.sweep()
    rig.settle()
    assert rig.received == rig.made


@pytest.mark.parametrize("live", [True, False])
def test_text_that_a_failover_lost_is_waited_for(live: bool) -> None:
    """A head that was heard and is gone with a primary is asked for in time, not as fast as Redis answers."""
    rig = live_rig()
    rig.consumer.live = live
    lost = encode(content("lost and made again"))
    rig.consumer.ring(len(rig.server.journal) + len(lost))
    reads = len(rig.wire.reads)
    for _ in range(50):  # round trips in no time
        rig.wire.execute()
        rig.wire.deliver()
    assert len(rig.wire.reads) - reads <= 3
    rig.server.append(lost)
    rig.wire.push(b"%d" % len(rig.server.journal))
    rig.settle()
    assert rig.received == "0lost and made again"


def test_ids_follow_the_epoch() -> None:
    """Text of a new worker has the new epoch in its ids, read from the log or from the journal."""
    rig = live_rig()
    rig.another_worker()
    rig.append("a")
    rig.settle()
    rig.consumer.live = False
    rig.another_worker()
    rig.append("b", ring=False)
    rig.sweep()
    rig.settle()
    epochs = [got.id.partition("-")[2] for got in rig.socket.events if got.id]
    assert epochs == ["1", "2", "3"]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("size", [1, 40])
def test_text_that_another_worker_overruled_is_not_gone_on_from(live: bool, size: int) -> None:
    """A failover lost what was sent, and its worker is gone: the reader attaches anew, to be rewound."""
    rig = live_rig()
    rig.append("lost with its worker")
    rig.settle()
    had, sent = rig.received, rig.consumer.ledger.sent
    kept = rig.server.log[:-1]
    rig.server.log, rig.server.journal = kept, rig.server.journal[: kept[-1][0].end]
    rig.server.groups[b"c"].last = kept[-1][0]
    rig.server.groups[b"c"].pending.clear()
    rig.consumer.live = live
    rig.another_worker()
    rig.append("other text " * size)  # shorter than what was lost, or longer
    rig.settle()
    rig.consumer.sweep()
    rig.settle()
    rig.consumer.recover()
    rig.settle()
    assert rig.received == had
    assert rig.consumer.ended.result() is Ending.LOST
    assert (rig.consumer.ledger.sent, rig.consumer.outlet.epoch) == (sent, 1)


# --- credit


def test_out_of_credit_it_does_not_read() -> None:
    """A client that takes nothing stops the reading: rings, timers and turns send no read for it."""
    rig = Rig(size=1024)
    rig.begin()
    for _ in range(50):
        rig.append("x" * 100)
        rig.settle(take=False)
    assert rig.consumer.ledger.unconfirmed <= 1024
    reads = len(rig.wire.reads)
    for _ in range(20):
        rig.append("x" * 100)
        rig.settle(take=False)
    assert len(rig.wire.reads) == reads
    assert rig.consumer.lag == len(rig.server.journal)
    rig.settle()
    assert rig.received == rig.made


def test_one_record_may_exceed_a_small_credit() -> None:
    """With nothing out a record larger than the credit goes alone: no reader starves of its own window."""
    rig = Rig(size=256)
    rig.begin()
    for _ in range(5):
        rig.append("x" * 8000)
    rig.settle(take=False)
    assert rig.ids == [rig.placed[0].end]
    rig.settle()
    assert rig.received == rig.made


def test_entries_are_bounded_too() -> None:
    """However small its entries, at most so many are unconfirmed: a pending entry costs memory in Redis."""
    rig = Rig(entries=8)
    rig.begin()
    for _ in range(100):
        rig.append("x")
        rig.settle(take=False)
        assert len(rig.server.groups[b"c"].pending) <= 8
    rig.settle()
    assert rig.received == rig.made


def test_the_end_needs_no_credit() -> None:
    """A reader whose credit does not hold the last event gets it all the same, as the last of its events."""
    rig = live_rig(size=200)
    rig.append("x" * 80)
    rig.settle(take=False)
    rig.append_records(event(Channel.DONE, {"finish_reason": "stop", "usage": {"padding": "x" * 300}}))
    rig.settle(take=False)
    assert rig.socket.events[-1].event == "done"
    assert rig.consumer.ledger.unconfirmed > 200
    assert not rig.consumer.ended.done()  # its bytes are still on their way


def test_the_end_waits_until_the_client_has_it() -> None:
    """The connection is closed when the last event has been taken, not when it was written."""
    rig = live_rig()
    rig.finish()
    rig.settle(take=False)
    assert rig.socket.events[-1].event == "done"
    assert not rig.consumer.ended.done()
    rig.socket.take(rig.socket.outstanding() - 3)
    rig.loop.advance(1)
    assert not rig.consumer.ended.done()
    rig.socket.take()
    rig.loop.advance(1)
    assert rig.consumer.ended.result() is Ending.TERMINAL
    assert rig.loop.timers == 0


@pytest.mark.parametrize("ending", [Ending.DRAINED, Ending.SUPERSEDED])
def test_nothing_is_said_after_the_end(ending: Ending) -> None:
    """The last event is on its way, and the node drains or another connection takes the name over."""
    rig = live_rig()
    rig.finish()
    rig.settle(take=False)
    rig.consumer.end(ending, b"event: reconnect\ndata: {}\n\n")
    rig.socket.take()
    assert rig.socket.events[-1].event == "done"


def test_a_response_that_has_ended_already_ends_its_reader() -> None:
    """A reader of a finished response gets it whole and ends, without one read of the log."""
    rig = Rig()
    rig.append("all of it")
    rig.finish()
    rig.begin()
    rig.settle()
    assert rig.received == "all of it"
    assert rig.consumer.ended.result() is Ending.TERMINAL
    assert rig.wire.reads == []


# --- explicit acks


def test_with_explicit_acks_the_kernel_s_word_counts_for_nothing() -> None:
    """No more than the window goes out until the client itself says how far it is, whatever it has taken."""
    rig = Rig(size=300, explicit=True)
    rig.begin()
    for _ in range(20):
        rig.append("x" * 98)
    rig.settle()
    assert rig.consumer.ledger.unconfirmed == 300
    assert rig.consumer.ledger.confirmed == 0
    rig.consumer.acknowledge(rig.ids[0])
    rig.settle()
    assert rig.consumer.ledger.confirmed == rig.ids[0]
    assert rig.consumer.ledger.unconfirmed <= 300
    assert rig.server.position(b"c") == rig.ids[0]


def test_a_full_window_is_not_asked_about_again() -> None:
    """Where the next record does not fit the window, nothing is read before an ack makes more room."""
    rig = Rig(size=2048, explicit=True)
    rig.begin()
    for _ in range(5):
        rig.append("x" * 600)
    rig.settle()
    assert 0 < rig.consumer.outlet.credit.size - rig.consumer.ledger.unconfirmed < 600
    commands = len(rig.wire.commands)
    for _ in range(20):
        rig.append("x" * 600)
        rig.settle()
    assert len(rig.wire.commands) == commands
    assert rig.loop.timers == 0
    while rig.consumer.ledger.confirmed < len(rig.server.journal):
        rig.consumer.acknowledge(rig.consumer.ledger.sent)
        rig.settle()
    assert rig.received == rig.made


def test_acks_beyond_what_was_sent_or_from_the_past_change_nothing() -> None:
    """A client cannot confirm what it was not sent, and an old ack that arrives late moves nothing back."""
    rig = Rig(size=300, explicit=True)
    rig.begin()
    for _ in range(20):
        rig.append("x" * 98)
    rig.settle()
    sent = rig.consumer.ledger.sent
    for offset in (sent + 1, len(rig.server.journal), 10**15, -1, 0):
        rig.consumer.acknowledge(offset)
        assert rig.consumer.ledger.confirmed == 0
    rig.consumer.acknowledge(sent)
    rig.consumer.acknowledge(sent - 100)
    assert rig.consumer.ledger.confirmed == sent


def test_an_ack_that_was_not_heard_is_found_by_the_sweep() -> None:
    """The bell rang while the connection was away: what Redis keeps of the ack makes room all the same."""
    rig = Rig(size=300, explicit=True)
    rig.begin()
    for _ in range(10):
        rig.append("x" * 80)
    rig.settle()
    sent = rig.consumer.ledger.sent
    assert sent < len(rig.server.journal)
    rig.server.acks[b"acked:c"] = b"%d-1" % rig.ids[-1]
    rig.sweep()
    rig.settle()
    assert rig.consumer.ledger.confirmed == sent
    assert rig.consumer.ledger.sent > sent


def test_an_ack_means_nothing_to_a_consumer_without_a_window() -> None:
    """Where the kernel's word counts, an ack call cannot run ahead of it."""
    rig = live_rig()
    rig.append("x" * 100)
    rig.wire.deliver()
    rig.wire.execute()
    rig.wire.deliver()
    before = rig.consumer.ledger.confirmed
    rig.consumer.acknowledge(rig.consumer.ledger.sent)
    assert rig.consumer.ledger.confirmed == before


# --- the end of a connection


@pytest.mark.parametrize("moment", ["sent", "executed"])
@pytest.mark.parametrize("kind", ["log", "journal"])
def test_a_disconnect_cancels_no_reply(kind: str, moment: str) -> None:
    """A client that hangs up in mid-read leaves the read be: its reply comes, and writes nothing."""
    rig = live_rig()
    rig.consumer.live = kind == "log"
    rig.append("x", ring=False)
    rig.sweep()
    assert rig.wire.reads_in_flight == 1
    if moment == "executed":
        rig.wire.execute()
    written = rig.socket.data
    rig.socket.lose()
    assert not any(reply.cancelled() for reply in rig.wire.reads)
    rig.settle()
    assert all(reply.done() and not reply.cancelled() for reply in rig.wire.reads)
    assert rig.socket.data == written
    assert rig.consumer.ended.result() is Ending.DISCONNECTED


def test_the_first_reason_counts() -> None:
    """An ending is final: a later reason neither replaces it nor raises, and no timer fires after it."""
    rig = Rig(size=64)
    rig.begin()
    rig.append("x" * 100)
    rig.settle(take=False)
    rig.consumer.end(Ending.SUPERSEDED)
    rig.consumer.end(Ending.DISCONNECTED)
    assert rig.consumer.ended.result() is Ending.SUPERSEDED
    commands = len(rig.wire.commands)
    rig.socket.take()
    rig.append("y")
    rig.sweep()
    rig.settle()
    assert len(rig.wire.commands) == commands
    assert rig.loop.timers == 0


@pytest.mark.parametrize("live", [True, False])
def test_a_lost_group_ends_it_as_lost(live: bool) -> None:
    """A group or a response that is gone from Redis is told apart from a client that is gone."""
    rig = live_rig()
    rig.consumer.live = live
    rig.server.groups.clear()
    rig.sweep()
    rig.settle()
    assert rig.consumer.ended.result() is Ending.LOST


@pytest.mark.parametrize("error", [Unavailable("LOADING"), OutOfMemory("OOM")])
def test_a_server_that_is_busy_is_asked_again(error: Exception) -> None:
    """A server that cannot answer now loses nobody: the next sweep asks again."""
    rig = live_rig()
    rig.append("a")
    rig.wire.deliver()
    reply = rig.wire.sent.pop()[1]
    assert reply is not None
    reply.set_exception(error)
    rig.loop.run()
    assert not rig.consumer.ended.done()
    assert rig.received == "0"
    rig.sweep()
    rig.settle()
    assert rig.received == "0a"


def test_it_waits_while_redis_is_away() -> None:
    """Without a connection nothing is sent and nothing raised; afterwards the text goes on where it was."""
    rig = live_rig()
    rig.append("a")
    rig.wire.break_connection()
    rig.append("b", ring=False)
    rig.sweep()
    rig.turn()
    assert not rig.consumer.ended.done()
    rig.wire.connected = True
    rig.sweep()  # what the node does on a reconnect
    rig.settle()
    assert rig.received == "0ab"
    assert in_order(rig)


def test_a_read_lost_with_its_connection_is_repeated() -> None:
    """An answer lost on the way, after the server gave the entries out, is read from the journal instead."""
    rig = live_rig()
    rig.append("a")
    rig.wire.deliver()
    rig.wire.execute()  # delivered to the group, as the server sees it
    rig.wire.break_connection()
    rig.wire.connected = True
    rig.sweep()
    rig.append("b")
    rig.settle()
    assert rig.received == "0ab"


# --- what it says beside the response


def test_a_quiet_connection_is_kept_open() -> None:
    """After keepalive_s without an event there is a comment, and none on a connection that is busy."""
    rig = live_rig(keepalive_s=15.0)
    rig.loop.advance(14 - (rig.loop.now - rig.consumer.written_at))
    rig.sweep()
    assert not rig.socket.data.endswith(sse.KEEPALIVE)
    rig.loop.advance(1)
    rig.sweep()
    assert rig.socket.data.endswith(sse.KEEPALIVE)
    rig.socket.take()
    written = rig.socket.data
    rig.sweep()
    assert rig.socket.data == written


def test_a_reader_that_waits_for_the_first_event_is_kept_open() -> None:
    """The looks for a lost ring, once a second, are nothing that its client hears."""
    rig = Rig(keepalive_s=15.0)
    rig.begin()
    for _ in range(31):
        rig.loop.advance(1)
        rig.sweep()
        rig.settle()
    assert rig.socket.data.count(sse.KEEPALIVE) == 2


def test_a_client_that_does_not_take_is_not_sent_comments() -> None:
    """Comments do not pile up in front of a stalled client: they would be no sign of life for it."""
    rig = live_rig(keepalive_s=1.0)
    rig.append("x")
    rig.settle(take=False)
    for _ in range(10):
        rig.loop.advance(1)
        rig.sweep()
    assert not rig.socket.data.endswith(sse.KEEPALIVE)


def test_a_reader_without_credit_stays_known_as_alive() -> None:
    """One that may not read says each second that it is there: idle time tells the dead from the slow."""
    rig = Rig(size=64)
    rig.begin()
    rig.append("x" * 200)
    rig.settle(take=False)
    seen = len(rig.wire.named("XREADGROUP"))
    rig.sweep()
    rig.settle(take=False)
    assert len(rig.wire.named("XREADGROUP")) == seen + 1


def test_lag_is_what_the_client_lacks() -> None:
    """Lag counts from what is confirmed to the head as last heard; its age from the last progress."""
    rig = live_rig()
    assert (rig.consumer.lag, rig.consumer.backlog.age(rig.loop.now)) == (0, 0.0)
    head = len(rig.server.journal)
    rig.append("x" * 100)
    rig.settle(take=False)
    rig.loop.advance(3)
    assert rig.consumer.lag == len(rig.server.journal) - head
    assert rig.consumer.backlog.age(rig.loop.now) >= 3
    rig.settle()
    assert (rig.consumer.lag, rig.consumer.backlog.age(rig.loop.now)) == (0, 0.0)


# --- several consumers of one node


async def test_a_newer_connection_takes_a_name_over() -> None:
    """Of two connections with one name the newer wins: the older is told, ends, and touches nothing more."""
    served = Served()
    served.append("one ")
    older, first = await served.attach("me")
    newer, second = await served.attach("me")
    await served.settle(first, second)
    assert older.ended.result() is Ending.SUPERSEDED
    told = first.events[-1]
    assert (told.event, told.id, json.loads(told.data)["code"]) == ("error", None, "superseded")
    served.node.detach(older)
    served.append("two")
    await served.settle(first, second)
    assert not newer.ended.done()
    assert served.server.groups[b"me"].member == newer.connection.encode()
    assert (first.text, second.text) == ("one ", "one two")


async def test_a_connection_that_is_superseded_before_it_began_does_not_begin() -> None:
    """A newer connection between the attach and the start of an older one: the older ends at once."""
    served = Served()
    served.append("one")
    older, _ = await served.node.attach(
        served.journal, FakeSocket().as_client(), name="me", position=None, window=None
    )
    newer, _ = await served.attach("me")
    await served.settle()
    assert older.ended.result() is Ending.SUPERSEDED
    assert not newer.ended.done()


class Talk:
    """The ASGI side of one `EventStream`: what was sent through uvicorn; the rest went to the socket."""

    def __init__(self, served: Served, consumer: Consumer, attached: Attached) -> None:
        self.sent: list[Any] = []
        self.task = asyncio.ensure_future(
            EventStream(served.node, consumer, attached)({"type": "http"}, _never, self._send)
        )

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def _never() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("how", ["superseded", "drained"])
async def test_what_ends_a_reader_before_it_began_is_told_with_its_head(how: str) -> None:
    """Replaced or sent elsewhere between its attach and its first byte: the client hears why all the same."""
    served = Served()
    socket = FakeSocket()
    consumer, attached = await served.node.attach(
        served.journal, socket.as_client(), name="me", position=None, window=None
    )
    if how == "drained":
        served.node.drain()
    else:
        await served.attach("me")
        await served.settle()
    await asyncio.wait_for(Talk(served, consumer, attached).task, 30)
    told = socket.events
    assert [got.event for got in told] == [{"superseded": "error", "drained": "reconnect"}[how]]
    assert "superseded" in told[0].data or json.loads(told[0].data)["retry_ms"] > 0


async def test_a_reader_whose_response_is_gone_is_told_and_counted_once() -> None:
    """Its group is lost and the response too: a typed error ends it, and one ending is counted."""
    served = Served()
    socket = FakeSocket()
    consumer, attached = await served.node.attach(
        served.journal, socket.as_client(), name="me", position=None, window=None
    )
    talk = Talk(served, consumer, attached)
    await asyncio.sleep(0)
    served.server.gone = True
    served.server.groups.clear()
    while not talk.task.done():
        await served.settle(socket)
    await talk.task
    assert json.loads(socket.events[-1].data)["code"] == "stream_lost"
    assert +served.metrics.endings == {"lost": 1}
    assert talk.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_two_readers_hear_one_bell() -> None:
    """Many readers of one response share one subscription, which goes with the last of them."""
    served = Served()
    one, first = await served.attach()
    two, second = await served.attach()
    assert one.name != two.name
    assert list(served.wire.listeners) == [keys_of(ID).bell]
    served.append("both")
    await served.settle(first, second)
    assert first.text == second.text == "both"
    served.node.detach(one)
    assert served.wire.listeners
    served.node.detach(two)
    assert not served.wire.listeners
    await served.settle()
    assert served.server.groups == {}


async def test_a_name_s_position_outlives_its_connection() -> None:
    """A named consumer that comes back without an id goes on at what its client had confirmed."""
    served = Served()
    served.append("confirmed ")
    consumer, socket = await served.attach("me")
    await served.settle(socket)
    served.append("not confirmed")
    await served.settle()
    assert consumer.ledger.unconfirmed
    socket.lose()
    served.node.detach(consumer)
    again, socket = await served.attach("me")
    assert socket.text == "not confirmed"
    assert again.ledger.confirmed == len(encode(content("confirmed ")))


async def test_a_client_that_is_gone_before_its_attach_is_no_reader() -> None:
    """A connection lost while Redis was asked makes a consumer that has ended: nobody reads for it."""
    served = Served()
    served.append("one")
    socket = FakeSocket()
    socket.lose()
    consumer, attached = await served.node.attach(
        served.journal, socket.as_client(), name=None, position=None, window=None
    )
    assert consumer.ended.result() is Ending.DISCONNECTED
    served.node.detach(consumer)
    await served.settle()
    assert served.server.groups == {}
    assert attached.data


async def test_an_attach_that_fails_leaves_nothing_behind() -> None:
    """A response that is gone: the error is the caller's, and no consumer and no bell stay."""
    served = Served()
    served.server.gone = True
    with pytest.raises(StreamLost):
        await served.attach()
    assert served.node.consumers == []
    assert served.wire.listeners == {}


async def test_a_node_has_a_bound_on_its_consumers() -> None:
    """One more than max_consumers is told to come back later, and counted."""
    served = Served(max_consumers=2)
    await served.attach()
    one, _ = await served.attach()
    with pytest.raises(Overloaded) as caught:
        await served.attach()
    assert caught.value.retry_after_s is not None
    assert served.metrics.shed["consumers"] == 1
    served.node.detach(one)
    await served.attach()


async def test_a_consumer_whose_group_is_lost_is_attached_again() -> None:
    """A connection survives the loss of its group: it goes on after what was written, without a seam."""
    served = Served()
    served.append("one ")
    lost, socket = await served.attach("me")
    await served.settle(socket)
    served.server.groups.clear()
    served.append("two ")
    await served.settle(socket)
    assert lost.ended.result() is Ending.LOST
    found, attached = await served.node.reattach(lost)
    found.begin(attached)
    served.append("three")
    await served.settle(socket)
    assert socket.text == "one two three"
    assert [got.event for got in socket.events] == ["delta"] * len(socket.events)


async def test_acks_travel_by_the_bell() -> None:
    """An ack reaches the consumer of that name on whichever node it is, and no other."""
    served = Served()
    for _ in range(10):
        served.append("x" * 98)
    mine, first = await served.attach("mine", window=300)
    yours, second = await served.attach("yours", window=300)
    await served.settle(first, second)
    assert mine.ledger.confirmed == 0
    served.wire.push(b"ack mine %d" % mine.ledger.sent)
    await served.settle(first, second)
    assert mine.ledger.confirmed == 300
    assert yours.ledger.confirmed == 0


async def test_a_drain_sends_every_reader_elsewhere() -> None:
    """A draining node tells its readers when to come back, ends them, and knows when the last has gone."""
    served = Served()
    one, first = await served.attach("me")
    two, second = await served.attach()
    served.node.drain()
    for consumer, socket in ((one, first), (two, second)):
        assert socket.events[-1].event == "reconnect"
        assert 0 < json.loads(socket.events[-1].data)["retry_ms"] <= 2000
        assert consumer.ended.result() is Ending.DRAINED
    waiting = asyncio.ensure_future(served.node.drained())
    await asyncio.sleep(0)
    served.node.detach(one)
    await asyncio.sleep(0)
    assert not waiting.done()
    served.node.detach(two)
    await asyncio.wait_for(waiting, 30)
    assert +served.metrics.endings == {"drained": 2}


def _broken(rig: Rig) -> None:
    """The connection breaks with what is in flight, and is there again."""
    rig.wire.break_connection()
    rig.wire.connected = True
    rig.consumer.recover()
    rig.append("b")
    rig.settle()


def test_a_read_that_is_answered_after_the_cluster_has_changed_is_not_heard() -> None:
    """Else there would be two from the place where it stands, and what comes second would be sent again."""
    rig = live_rig()
    rig.append("a")
    rig.wire.deliver()
    rig.wire.execute()  # it has read, and the answer is on its way
    rig.append("b")
    rig.consumer.recover()
    rig.settle()
    assert rig.received == "0ab"
    assert in_order(rig)


def test_its_place_in_redis_follows_after_a_lost_reply() -> None:
    """A reply lost with its connection leaves no pending entry behind that nobody knows of."""
    rig = live_rig()
    rig.append("a")
    rig.wire.deliver()
    rig.wire.execute()  # given out, as the server sees it
    _broken(rig)
    assert not rig.consumer.ended.done()
    assert rig.server.position(b"c") == len(rig.server.journal)


def test_its_place_in_redis_follows_after_a_lost_acknowledgement() -> None:
    """An XACK lost with its connection is made good."""
    rig = live_rig()
    rig.append("a")
    rig.wire.deliver()
    rig.wire.execute()
    rig.wire.deliver()
    rig.socket.take()
    rig.turn()
    assert rig.wire.sent  # the XACK
    _broken(rig)
    assert not rig.consumer.ended.done()
    assert rig.server.position(b"c") == len(rig.server.journal)


def test_a_reader_that_was_replaced_during_a_break_is_told() -> None:
    """It missed the bell that said so: the reset finds out, and does not take the name back."""
    rig = live_rig()
    rig.server.groups[b"c"].member = b"newer"
    _broken(rig)
    assert rig.consumer.ended.result() is Ending.SUPERSEDED
    assert rig.server.groups[b"c"].member == b"newer"


async def test_after_a_reconnect_every_reader_looks() -> None:
    """Rings may have been missed while the connection was away: nobody waits for the next one."""
    served = Served()
    _, socket = await served.attach()
    served.server.append(encode(content("missed")))
    for callback in served.wire.reconnect_callbacks:
        callback()
    for _ in range(3):
        served.wire.execute()
        served.wire.deliver()
        await asyncio.sleep(0)
    assert socket.text == "missed"


# --- what the fake server says is what a real one says


class Twins:
    """A real response and a faked one, given the same commands; `group` with its one member on each."""

    group, member = "c", "k"

    def __init__(self, wire: Wire, seed: int) -> None:
        self.choose = random.Random(seed)
        self.fake = FakeServer()
        self.fake_wire = FakeWire(self.fake, asyncio.get_running_loop())
        self.wire = wire
        self.keys = keys_of(ID)
        self.journals = [Journal(wire, ID), Journal(self.fake_wire.as_wire(), ID)]

    async def same(self, *args: Argument) -> None:
        """One command to both; the replies must not differ."""
        replies = []
        for side in (self.wire, self.fake_wire):
            try:
                replies.append(_plain(await side.call(*args)))
            except Refused as error:
                replies.append(error.prefix)
        assert replies[0] == replies[1], args

    def boundary(self) -> int:
        """A record boundary."""
        return self.choose.choice([0, *(item.end for item in decode(self.fake.journal)[0])])

    async def append(self) -> None:
        """An entry."""
        base = len(self.fake.journal)
        data = encode(content(f"{base} " * self.choose.randint(1, 5)))
        self.fake.append(data)
        await scripts.append_records(
            self.wire, self.keys, epoch=self.fake.epoch, base=base, data=data, cap=1000, retention_s=60
        )

    async def read(self) -> None:
        """New entries, sometimes."""
        await self._read_group(self.choose.randint(1, 5), ">")

    async def seen(self) -> None:
        """The read of no history."""
        await self._read_group(1, f"{LAST_SEQUENCE}-{LAST_SEQUENCE - 1}")

    async def _read_group(self, count: int, after: str) -> None:
        words = ("XREADGROUP", "GROUP", self.group, self.member, "COUNT", count)
        await self.same(*words, "STREAMS", self.keys.log, after)

    async def acknowledge(self) -> None:
        """Some of what is pending, and an entry that is not."""
        group = self.fake.groups.get(self.group.encode())
        pending = [bytes(entry_id) for entry_id in group.pending] if group else []
        some = self.choose.sample(pending, self.choose.randint(0, len(pending)))
        await self.same("XACK", self.keys.log, self.group, *some, b"1-7")

    async def move(self) -> None:
        """The group is moved."""
        await self.same("XGROUP", "SETID", self.keys.log, self.group, f"{self.boundary()}-{LAST_SEQUENCE}")

    async def journal(self) -> None:
        """Part of the journal, and the epochs."""
        start = self.choose.randint(0, len(self.fake.journal))
        await self.same("GETRANGE", self.keys.journal, start, start + self.choose.randint(0, 99))
        await self.same("HMGET", self.keys.meta, "epoch", "starts")

    async def entries(self) -> None:
        """Entries of the log, of no group."""
        after, count = f"({self.boundary()}-{LAST_SEQUENCE}", self.choose.randint(1, 5)
        await self.same("XRANGE", self.keys.log, after, "+", "COUNT", count)

    async def attach(self) -> None:
        """Again, at a position or where it was."""
        position = Position(self.boundary(), self.fake.epoch) if self.choose.random() < 0.5 else None
        attached = [
            await journal.attach(self.group, self.member, position, limit=500, retention_s=60)
            for journal in self.journals
        ]
        assert attached[0] == attached[1]

    async def detach(self) -> None:
        """By its member or by one that was replaced, and back again."""
        member, keep = self.choose.choice([self.member, "other"]), self.choose.choice("01")
        await self.same(
            "EVALSHA", scripts.DETACH.sha, 1, self.keys.log, self.group, member, self.boundary(), keep
        )
        await self.read()
        await self.attach()

    async def trim(self) -> None:
        """The oldest entries go, the newest stays."""
        if len(self.fake.log) > 1:
            del self.fake.log[: self.choose.randint(1, min(3, len(self.fake.log) - 1))]
            await self.wire.call("XTRIM", self.keys.log, "MAXLEN", len(self.fake.log))


@pytest.mark.parametrize("seed", range(8))
async def test_the_fake_server_is_like_a_real_one(seed: int, embedded_url: str) -> None:
    """Any mix of a consumer's commands has the same replies from the fake server and from a real one."""
    async with open_wire(embedded_url) as wire:
        await scripts.load(wire)
        fields: dict[str, Argument] = {"status": "queued", "level": 0, "request": "{}"}
        await scripts.open_response(wire, keys_of(ID), retention_s=60, fields=fields)
        claimed = await scripts.claim_response(wire, keys_of(ID), owner="w", lease_ms=60_000, retention_s=60)
        assert isinstance(claimed, scripts.Claimed)
        twins = Twins(wire, seed)
        twins.fake.epoch = twins.fake.first_epoch = claimed.epoch
        await twins.attach()
        often = [twins.append, twins.read, twins.acknowledge]
        seldom = [twins.move, twins.journal, twins.entries, twins.attach, twins.detach, twins.seen]
        for number in range(200):
            await twins.choose.choice([*often * 3, *seldom, *([twins.trim] if number > 100 else [])])()


def _plain(reply: Any) -> Any:
    """A reply without the times of its entries."""
    if isinstance(reply, dict):
        return {key: _plain(rows) for key, rows in reply.items()}
    if isinstance(reply, list) and not isinstance(reply[0] if reply else None, bytes | None):
        return [(entry_id, fields and fields[1]) for entry_id, fields in reply]
    return reply


# --- in any order


class ConsumerMachine(ResponseMachine):
    """Everything that can happen to a consumer, in any order."""

    rig: Rig

    @initialize(
        size=st.sampled_from([64, 300, 1024, 16_384]),
        entries=st.sampled_from([1, 4, 64]),
        explicit=st.booleans(),
        before=st.integers(0, 30),
    )
    def attach(self, size: int, entries: int, explicit: bool, before: int) -> None:
        """A consumer joins a response that may have begun, and something is appended before it starts."""
        self.stage = self.rig = rig = Rig(size=size, entries=entries, explicit=explicit)
        self.acked = 0
        self.was_confirmed = 0
        for number in range(before):
            rig.append(f"{number} ", ring=False)
        attached = rig.attach()
        rig.append("between ")
        rig.wire.execute()
        rig.wire.deliver()
        rig.consumer.begin(attached)

    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        """The client's kernel takes some."""
        self.rig.socket.take(int(self.rig.socket.outstanding() * share))

    @rule(which=st.integers(0, 1000))
    def acknowledge(self, which: int) -> None:
        """The client's ack of something that it has, or of an earlier thing once more."""
        have = [offset for offset in self.rig.ids if offset <= self.rig.socket.taken_offset]
        if have:
            offset = have[which % len(have)]
            self.acked = max(self.acked, offset)
            self.rig.consumer.acknowledge(offset)
            self.rig.loop.run()

    @rule()
    def change_the_cluster(self) -> None:
        """A slot moves, or a node is replaced: what is in flight is answered all the same."""
        self.rig.consumer.recover()

    @invariant()
    def at_most_one_read(self) -> None:
        """Never two reads in flight."""
        assert self.rig.wire.reads_in_flight <= 1

    @invariant()
    def a_beginning_of_the_response(self) -> None:
        """The client was sent a beginning of the text, in order, nothing twice, nothing left out."""
        assert in_order(self.rig)
        ends = {item.end: item.record for item in self.rig.placed}
        assert set(self.rig.ids) <= set(ends)
        notices = [end for end, (channel, _) in ends.items() if channel is Channel.NOTICE]
        got = [offset_of(got) for got in self.rig.socket.events if got.event == "notice"]
        assert got == [end for end in notices if end <= self.rig.consumer.ledger.sent]

    @invariant()
    def within_the_credit(self) -> None:
        """What is unconfirmed fits the credit, in bytes and in entries."""
        assert len(self.rig.server.groups[b"c"].pending) <= self.rig.consumer.outlet.credit.entries
        self.assert_within_credit(self.rig.consumer)

    @invariant()
    def never_ahead_of_the_client(self) -> None:
        """Neither the ledger nor Redis takes for confirmed what the client does not have."""
        confirmed = self.rig.consumer.ledger.confirmed
        has = self.acked if self.rig.consumer.outlet.credit.explicit else self.rig.socket.taken_offset
        assert self.was_confirmed <= confirmed <= has
        if not self.rig.wire.reads_in_flight and not self.rig.wire.sent:
            assert self.rig.server.position(b"c") <= has
        self.was_confirmed = confirmed

    def teardown(self) -> None:
        """Left to itself with a client that takes all, it arrives at the end."""
        if not hasattr(self, "rig"):
            return
        rig = self.rig
        for _ in range(400):
            rig.socket.take()
            if rig.consumer.outlet.credit.explicit:
                rig.consumer.acknowledge(rig.consumer.ledger.sent)
            if not rig.wire.execute() + rig.wire.deliver():
                rig.turn()
                rig.sweep()
        assert rig.received == rig.made
        if self.done:
            assert rig.consumer.ended.result() is Ending.TERMINAL
            assert rig.loop.timers == 0
        else:
            assert not rig.consumer.ended.done()
            assert rig.consumer.lag == 0
            if not self.trimmed:
                assert rig.server.position(b"c") == len(rig.server.journal)


TestConsumerMachine = ConsumerMachine.TestCase
TestConsumerMachine.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
