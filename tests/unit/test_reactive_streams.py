"""The rules of Reactive Streams that hold here too, each by its number, on the real consumer.

https://github.com/reactive-streams/reactive-streams-jvm/blob/v1.0.4/README.md#specification

    Publisher      a response                onNext      an event with an id
    Subscriber     a client                  onComplete  `done`
    Subscription   a consumer: the relay's   onError     `error`
                   end of one connection     request(n)  what was confirmed of the credit
                                             cancel      the end of the connection

Demand is counted in bytes of the response. Records are not cut: while less than half of a window is out
one may go past it, for a client that has less than that to confirm would wait as we would.
"""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.ending import Ending
from api.node import Node
from relay.errors import Unavailable
from relay.events import HEADER_MAX, Channel, content, event
from relay.position import START
from tests.support.consumer import Rig, Served

WINDOW = 1000
RECORD = 100  # bytes of text in one entry
LARGEST = RECORD + HEADER_MAX
ERROR = event(Channel.ERROR, {"code": "worker_lost", "message": "lost", "retryable": True})


def subscribed(*, explicit: bool = True, size: int = WINDOW, entries: int = 4096) -> Rig:
    """A consumer at the start of an empty response."""
    rig = Rig(size=size, explicit=explicit, entries=entries)
    rig.begin()
    return rig


def publish(rig: Rig, count: int) -> None:
    """So many entries of one record."""
    for _ in range(count):
        rig.append("x" * RECORD)
    rig.settle()


def terminals(rig: Rig) -> list[str]:
    """The terminal events that were signalled."""
    return [got.event for got in rig.socket.events if got.event in {"done", "error"}]


# --- 1. Publisher


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 15)), min_size=1, max_size=12))
def test_1_1_no_more_is_signalled_than_was_requested(steps: list[tuple[int, int]]) -> None:
    """However text and acks alternate: what is unconfirmed is the window at most, and one record."""
    rig = subscribed()
    for made, acked in steps:
        publish(rig, made)
        assert rig.consumer.ledger.unconfirmed <= WINDOW + LARGEST
        positions = [position for position in rig.ids if position > rig.consumer.ledger.confirmed]
        if positions and acked:
            rig.consumer.acknowledge(positions[min(acked, len(positions)) - 1])
            rig.settle()
            assert rig.consumer.ledger.unconfirmed <= WINDOW + LARGEST
    assert rig.made.startswith(rig.received)


def test_1_2_less_may_be_signalled_than_was_requested() -> None:
    """A response shorter than the demand ends all the same."""
    rig = subscribed()
    publish(rig, 1)
    rig.finish()
    rig.settle()
    assert rig.received == rig.made
    assert terminals(rig) == ["done"]


def test_1_3_signals_are_serial() -> None:
    """Rings that come during a read start no second one, and the events keep their order."""
    rig = subscribed(explicit=False, size=16_384)
    for _ in range(50):
        rig.append("x" * RECORD)
        rig.wire.execute()
        assert rig.wire.reads_in_flight <= 1
        rig.wire.deliver(1)
        assert rig.wire.reads_in_flight <= 1
    rig.settle()
    assert rig.ids == sorted(set(rig.ids))
    assert rig.received == rig.made


def test_1_4_a_failure_is_signalled_as_an_error() -> None:
    """One event, that says so, behind all the text."""
    rig = subscribed()
    publish(rig, 2)
    rig.server.status = b"failed"
    rig.append_records(ERROR)
    rig.settle()
    assert terminals(rig) == ["error"]
    assert rig.socket.events[-1].event == "error"
    assert rig.received == rig.made


def test_1_5_a_success_is_signalled_as_complete() -> None:
    """One event, that says so, behind all the text."""
    rig = subscribed()
    publish(rig, 2)
    rig.finish()
    rig.settle()
    assert terminals(rig) == ["done"]
    assert rig.socket.events[-1].event == "done"


@pytest.mark.parametrize("explicit", [False, True])
def test_1_6_after_a_terminal_signal_the_subscription_is_cancelled(explicit: bool) -> None:
    """It ends by itself, once: with explicit acks at once, else when the client has it."""
    rig = subscribed(explicit=explicit)
    publish(rig, 1)
    rig.finish()
    rig.settle()
    assert rig.consumer.ended.result() is Ending.TERMINAL
    assert not rig.consumer.is_open


def test_1_7_after_a_terminal_signal_nothing_is_signalled() -> None:
    """Neither what a faulty writer appends, nor a second end, nor a keep-alive."""
    rig = subscribed()
    rig.finish()
    rig.settle()
    before = rig.socket.data
    rig.append("more")
    rig.append_records(ERROR)
    rig.settle()
    for _ in range(100):
        rig.sweep()
        rig.turn()
    assert rig.socket.data == before


def test_1_8_after_a_cancel_signals_stop() -> None:
    """The client hangs up in mid-read: what the read brings is written nowhere."""
    rig = subscribed()
    rig.append("x" * RECORD)
    rig.wire.deliver()
    rig.wire.execute()
    rig.socket.lose()
    before = rig.socket.data
    rig.settle()
    rig.append("more")
    rig.settle()
    assert rig.socket.data == before
    assert rig.wire.reads_in_flight == 0
    assert rig.loop.timers == 0


def test_1_9_the_subscription_comes_before_every_signal() -> None:
    """A ring before `begin` writes nothing; after it, everything comes."""
    rig = Rig(size=WINDOW, explicit=True)
    attached = rig.attach()
    rig.append("x" * RECORD)
    rig.settle()
    assert rig.socket.data == b""
    rig.consumer.begin(attached)
    rig.settle()
    assert rig.received == rig.made


# --- 2. Subscriber


def test_2_1_without_demand_nothing_is_signalled() -> None:
    """A window that is used up stays so: more text, time and sweeps bring nothing until an ack."""
    rig = subscribed()
    publish(rig, 30)
    before = rig.socket.data
    publish(rig, 10)
    for _ in range(20):
        rig.sweep()
        rig.turn()
    assert rig.socket.data == before
    rig.consumer.acknowledge(rig.ids[-1])
    rig.settle()
    assert len(rig.socket.data) > len(before)


def test_2_3_a_terminal_signal_asks_for_no_answer() -> None:
    """It has ended without any ack; one that comes all the same starts nothing, and signals nothing."""
    rig = subscribed()
    publish(rig, 1)
    rig.finish()
    rig.settle()
    reads, data, ending = len(rig.wire.reads), rig.socket.data, rig.consumer.ended.result()
    rig.consumer.acknowledge(rig.ids[-1])
    rig.settle()
    assert (len(rig.wire.reads), rig.socket.data) == (reads, data)
    assert rig.consumer.ended.result() is ending


def test_2_5_a_second_subscription_of_one_subscriber_cancels_one_of_them() -> None:
    """The newer connection of a consumer's name wins: the older is told, once, and ends."""
    rig = subscribed()
    publish(rig, 1)
    Node.supersede(rig.consumer)
    Node.supersede(rig.consumer)
    rig.settle()
    assert rig.consumer.ended.result() is Ending.SUPERSEDED
    assert terminals(rig) == ["error"]
    assert rig.socket.events[-1].id is None  # it is no end of the response


def test_2_8_signals_under_way_may_arrive_after_a_cancel() -> None:
    """Every moment of a read: the cancel is final, and no reply is left without its reader."""
    for moment in range(6):
        rig = subscribed()
        rig.append("x" * RECORD)
        for step in range(moment):
            (rig.wire.execute if step % 2 else rig.wire.deliver)()
        rig.consumer.end(Ending.DISCONNECTED)
        before = rig.socket.data
        rig.settle()
        assert rig.socket.data == before
        assert all(reply.done() for reply in rig.wire.reads)


@pytest.mark.parametrize("last", [ERROR, event(Channel.DONE, {"finish_reason": "stop"})])
@pytest.mark.parametrize("left", [0, 1, 50])
def test_2_9_and_2_10_terminal_signals_need_no_demand(last: Any, left: int) -> None:
    """With nothing left of the window, or less than the event takes, the end comes all the same."""
    rig = subscribed(size=WINDOW)
    rig.append_records(content("x" * (WINDOW - left - 2)))
    rig.settle()
    assert rig.consumer.ledger.unconfirmed >= WINDOW - left - 2
    rig.server.status = b"completed"
    rig.append_records(last)
    rig.settle()
    for _ in range(3):
        rig.sweep()
        rig.settle()
    assert terminals(rig) == ["done" if last.channel is Channel.DONE else "error"]


# --- 3. Subscription


def test_3_3_a_request_from_within_a_signal_does_not_recurse() -> None:
    """A client that acks each event as it is written, before the write returns: the stack stays flat."""
    rig = subscribed(size=LARGEST)
    depths: list[int] = []
    write = rig.socket.write

    def acking(data: bytes) -> None:
        depths.append(len(gc_free_stack()))
        write(data)
        rig.loop.call_soon(rig.consumer.acknowledge, rig.ids[-1] if rig.ids else 0)

    rig.socket.write = acking  # type: ignore[method-assign]
    for _ in range(200):
        rig.append("x" * RECORD)
    rig.settle()
    assert rig.received == rig.made
    assert max(depths) - min(depths) < 12


def gc_free_stack() -> list[Any]:
    """The frames of the stack."""
    import sys

    frames, frame = [], sys._getframe()
    while frame is not None:
        frames.append(frame.f_code)
        frame = frame.f_back  # type: ignore[assignment]
    return frames


@pytest.mark.parametrize("first", [Ending.DISCONNECTED, Ending.SUPERSEDED, Ending.DRAINED])
def test_3_5_and_3_7_a_cancel_is_final_and_idempotent(first: Ending) -> None:
    """The first reason counts; the second cancel, of whatever kind, does nothing."""
    rig = subscribed()
    publish(rig, 1)
    rig.consumer.end(first)
    commands = len(rig.wire.commands)
    for ending in Ending:
        rig.consumer.end(ending)
    rig.socket.lose()
    rig.settle()
    assert rig.consumer.ended.result() is first
    assert len(rig.wire.commands) == commands
    assert rig.loop.timers == 0


def test_3_6_after_a_cancel_requests_do_nothing() -> None:
    """Acks, rings, steps, sweeps and reconnects: no read, not a byte."""
    rig = subscribed()
    publish(rig, 5)
    rig.consumer.end(Ending.DISCONNECTED)
    reads, data = len(rig.wire.reads), rig.socket.data
    rig.consumer.acknowledge(rig.ids[-1])
    rig.consumer.ring(10_000)
    rig.consumer.step()
    rig.consumer.sweep()
    rig.consumer.recover()
    rig.settle()
    assert (len(rig.wire.reads), rig.socket.data) == (reads, data)


def test_3_8_a_request_adds_to_the_demand() -> None:
    """Each ack, in however small steps, makes room for more, and for no more than the window."""
    rig = subscribed()
    publish(rig, 60)
    while rig.received != rig.made:
        confirmed, sent = rig.consumer.ledger.confirmed, rig.consumer.ledger.sent
        rig.consumer.acknowledge(next(position for position in rig.ids if position > confirmed))
        rig.settle()
        assert rig.consumer.ledger.confirmed > confirmed
        assert rig.consumer.ledger.sent >= sent
        assert rig.consumer.ledger.unconfirmed <= WINDOW + LARGEST
    assert rig.consumer.ledger.sent == len(rig.server.journal)


def test_3_9_a_request_of_nothing_is_no_request() -> None:
    """An ack of what is confirmed already, of less, or of what was never sent: no demand."""
    rig = subscribed()
    publish(rig, 30)
    rig.consumer.acknowledge(rig.ids[0])
    rig.settle()
    before = rig.socket.data
    for offset in (rig.ids[0], 0, -1, rig.consumer.ledger.sent + 1, 2**62):
        rig.consumer.acknowledge(offset)
        rig.settle()
    assert rig.socket.data == before


def test_3_17_demand_without_a_bound_is_a_bound_that_is_never_reached() -> None:
    """A megabyte of window: a whole response without a single ack."""
    rig = subscribed(size=2**20)
    publish(rig, 300)
    rig.finish()
    rig.settle()
    assert rig.received == rig.made
    assert terminals(rig) == ["done"]


# --- 1.10, 1.11 and 3.13: more than one subscriber, and none


async def test_1_11_many_subscribers_are_served_each_by_its_own_demand() -> None:
    """Of three readers of one response the one that acks gets all; the others what they asked for."""
    served = Served()
    readers = [await served.attach(f"c{index}", START, WINDOW) for index in range(3)]
    for _ in range(60):
        served.append("x" * RECORD)
    for _ in range(200):
        served.wire.execute()
        served.wire.deliver()
        await asyncio.sleep(0)
        quick, _ = readers[0]
        quick.acknowledge(quick.ledger.sent)
    assert readers[0][0].ledger.sent == len(served.server.journal)
    for consumer, _ in readers[1:]:
        assert WINDOW - LARGEST <= consumer.ledger.sent <= WINDOW + LARGEST
    for consumer, _ in readers:
        served.node.detach(consumer)


async def test_3_13_after_a_cancel_no_reference_to_the_subscriber_is_kept() -> None:
    """Detached, with a reply still under way: once that has come, neither consumer nor socket is held."""
    served = Served()
    consumer, socket = await served.attach("c", START, WINDOW)
    served.append("x" * RECORD)
    served.wire.deliver()
    references = [weakref.ref(consumer), weakref.ref(socket)]
    served.node.detach(consumer)
    del consumer, socket
    served.wire.execute()
    served.wire.deliver()
    served.wire.reads.clear()
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert served.node.consumers == []
    assert served.wire.listeners == {}


async def test_1_4_a_subscription_that_cannot_be_made_leaves_nothing() -> None:
    """Redis is away at the attach: the caller is told, and nobody is subscribed."""
    served = Served()
    served.wire.break_connection()
    with pytest.raises(Unavailable):
        await served.attach("c", START, WINDOW)
    assert served.node.consumers == []
    assert served.wire.listeners == {}
