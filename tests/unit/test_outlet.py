"""Where records leave: within the credit, merged, and nothing of them lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ledger import Credit
from api.metrics import Metrics
from api.outlet import BEHIND_FRAMES, Outlet
from relay.events import (
    HEADER_MAX,
    MAX_PAYLOAD,
    TERMINAL,
    Channel,
    Placed,
    Record,
    content,
    decode,
    encode,
    event,
)
from tests.support.consumer import FakeSocket

DONE = event(Channel.DONE, {"finish_reason": "stop"})
NOTICE = event(Channel.NOTICE, {"kind": "live"})

some_records = st.lists(
    st.one_of(
        st.text(max_size=120).map(content),
        st.text(max_size=120).map(lambda text: Record(Channel.REASONING, text.encode())),
        st.just(NOTICE),
    ),
    max_size=25,
)


def an_outlet(size: int, *, offset: int = 0, explicit: bool = False) -> tuple[Outlet, FakeSocket]:
    """An outlet with so much credit, and its socket."""
    socket = FakeSocket()
    return Outlet(socket.as_client(), Credit(size, 64, explicit=explicit), Metrics(), offset, 1), socket


def placed(*records: Record, base: int = 0) -> list[Placed]:
    """The records as they lie in a journal from `base`."""
    return decode(b"".join(map(encode, records)), base)[0]


def channel_texts(socket: FakeSocket) -> dict[str, str]:
    """All text that was written, by channel."""
    texts: dict[str, str] = {}
    for got in socket.events:
        if got.event == "delta":
            data = json.loads(got.data)
            texts[data["channel"]] = texts.get(data["channel"], "") + data["text"]
    return texts


def last_id(socket: FakeSocket) -> str | None:
    """The id of the last event written."""
    return socket.events[-1].id if socket.events else None


def test_neighbours_leave_as_one_frame_in_one_write() -> None:
    """Records of one channel in one batch are one event, and one chunk, which ends where the last does."""
    outlet, socket = an_outlet(1000)
    batch = placed(content("Hello"), content(", "), content("world"))
    assert outlet.write(batch)
    assert len(socket.events) == 1
    assert channel_texts(socket) == {"content": "Hello, world"}
    assert last_id(socket) == f"{batch[-1].end}-1"
    assert socket.written == len(b"%x\r\n\r\n" % len(socket.data)) + len(socket.data)


def test_nothing_is_written_for_nothing() -> None:
    """An empty batch is written whole: not a byte, and no terminal event out of nowhere."""
    outlet, socket = an_outlet(1000)
    assert outlet.write([])
    assert (socket.data, outlet.has_terminal, outlet.ledger.frames) == (b"", False, 0)


def test_what_the_credit_does_not_hold_is_left() -> None:
    """Records past the credit are not written: the ledger stands where the last one that fits ends."""
    outlet, socket = an_outlet(20)
    batch = placed(*[content("123456789")] * 4)  # 11 bytes each
    assert not outlet.write(batch)
    assert outlet.ledger.sent == batch[0].end == 11
    assert not outlet.write(batch[1:])
    assert channel_texts(socket) == {"content": "123456789"}


def test_with_nothing_out_one_record_may_exceed_the_credit() -> None:
    """A record larger than the whole credit still goes, alone: else its reader would wait for ever."""
    outlet, socket = an_outlet(10)
    batch = placed(content("x" * 500), content("y"))
    assert not outlet.write(batch)
    assert outlet.ledger.sent == batch[0].end
    assert not outlet.write(batch[1:])
    socket.take()
    outlet.ledger.confirm(outlet.acknowledged())
    assert outlet.write(batch[1:])
    assert channel_texts(socket) == {"content": "x" * 500 + "y"}


def test_a_client_that_confirms_half_a_window_at_a_time_is_never_waited_for() -> None:
    """Explicit acks: under half a window out one record may exceed it, from half on none may."""
    outlet, _ = an_outlet(1024, explicit=True)
    outlet.write(placed(content("x" * 500)))
    assert outlet.room_behind >= MAX_PAYLOAD + HEADER_MAX
    assert outlet.write(placed(content("y" * 900), base=502))
    assert outlet.ledger.sent > 1024
    assert not outlet.write(placed(content("z"), base=outlet.ledger.sent))
    assert outlet.room_behind <= 0

    outlet, _ = an_outlet(1024, explicit=True)
    outlet.write(placed(content("x" * 510)))  # 512 with its header: the client confirms that
    assert not outlet.write(placed(content("y" * 600), base=512))
    assert outlet.room_behind == outlet.room == 512


def test_with_explicit_acks_the_next_record_is_looked_at_once_whatever_is_out() -> None:
    """A terminal record needs no credit, but it must be read whole to be known for one."""
    outlet, _ = an_outlet(1024, explicit=True)
    text, last = placed(content("x" * 1000), DONE)
    assert outlet.write([text])
    assert outlet.room < len(encode(DONE)) <= outlet.room_behind
    assert outlet.write([last])
    assert outlet.has_terminal

    outlet, _ = an_outlet(1024, explicit=True)
    outlet.write(placed(content("x" * 1000)))
    outlet.write_part(encode(content("y" * 100)))
    assert outlet.room_behind <= outlet.room


@pytest.mark.parametrize("terminal", [DONE, event(Channel.ERROR, {"code": "x"})])
def test_a_terminal_record_needs_no_credit(terminal: Record) -> None:
    """The end of a response goes out whatever is unconfirmed, but never before what comes before it."""
    outlet, socket = an_outlet(11)
    first, last = placed(content("123456789"), terminal)
    assert outlet.write([first])
    assert outlet.write([last])
    assert outlet.has_terminal
    assert [got.event for got in socket.events] == ["delta", socket.events[-1].event]

    outlet, socket = an_outlet(11)
    batch = placed(content("123456789"), content("123456789"), terminal)
    assert not outlet.write(batch)
    assert not outlet.has_terminal
    assert [got.event for got in socket.events] == ["delta"]


def test_events_are_not_merged() -> None:
    """Atomic events keep their place between the deltas."""
    outlet, socket = an_outlet(1000)
    assert outlet.write(placed(content("a"), NOTICE, NOTICE, content("b"), DONE))
    assert [got.event for got in socket.events] == ["delta", "notice", "notice", "delta", "done"]


def test_the_id_has_the_newest_epoch() -> None:
    """A frame's id carries the epoch that the outlet was told of."""
    outlet, socket = an_outlet(1000)
    outlet.epoch = 4
    outlet.write(placed(content("a")))
    assert last_id(socket) == "2-4"


def test_acknowledged_follows_the_client_frame_by_frame() -> None:
    """A frame is the client's when its last byte is: its text may not be confirmed a byte earlier."""
    outlet, socket = an_outlet(1000)
    batch = placed(content("one"), NOTICE, content("two"))
    outlet.write(batch)
    confirmed = []
    for _ in range(socket.written):
        socket.take(1)
        confirmed.append(outlet.acknowledged())
        outlet.ledger.confirm(confirmed[-1])
    assert confirmed == sorted(confirmed)
    assert sorted(set(confirmed)) == [0, *(item.end for item in batch)]
    # The first frame's last byte is inside the chunk: nothing before it, and at most the framing after.
    first = socket.data.index(b"\n\n") + 2
    assert confirmed[first - 2] == 0
    assert batch[0].end in confirmed[: first + 10]


def test_bytes_of_an_earlier_answer_on_the_connection_confirm_nothing() -> None:
    """On a kept-alive connection the socket has counted before: only what is written from now on counts."""
    outlet, socket = an_outlet(1000)
    socket.write(b"the head and body of an earlier answer" * 100)
    outlet.write(placed(content("x")))
    socket.take(len(b"the head and body of an earlier answer" * 100))
    assert outlet.acknowledged() == 0
    socket.take()
    assert outlet.acknowledged() == 2


def test_frames_are_counted() -> None:
    """The metrics count what was written, by event and by bytes."""
    socket, metrics = FakeSocket(), Metrics()
    outlet = Outlet(socket.as_client(), Credit(1000, 64, explicit=False), metrics, 0, 1)
    outlet.write(placed(content("a"), content("b"), NOTICE))
    outlet.write(placed(DONE, base=outlet.ledger.sent))
    assert metrics.events == {"delta": 1, "notice": 1, "done": 1, "start": 0, "error": 0}
    assert sum(metrics.bytes.values()) == len(socket.data)


@pytest.mark.parametrize("size", [1, 256, MAX_PAYLOAD, 16_384, 2**20])
def test_with_nothing_out_there_is_room_for_any_record(size: int) -> None:
    """However small the credit, a read asks for a whole record: part of one cannot be written."""
    outlet, _ = an_outlet(size)
    assert outlet.room_behind >= max(size, MAX_PAYLOAD + HEADER_MAX)


def test_room_is_what_is_left_of_the_credit() -> None:
    """With something out a read asks for no more than may be written, and for nothing when that is over."""
    outlet, _ = an_outlet(100)
    outlet.write(placed(content("x" * 58)))
    assert outlet.room == outlet.room_behind == 100 - 60
    outlet.write(placed(DONE, base=60))
    assert outlet.room == outlet.room_behind == 100 - outlet.ledger.unconfirmed


def test_a_reader_that_is_behind_has_few_frames_on_their_way() -> None:
    """Frames cost more than their text: a reader of the journal waits until some of its few were taken."""
    outlet, socket = an_outlet(16_384)
    while outlet.room_behind:
        outlet.write(placed(content("x"), base=outlet.ledger.sent))
    assert outlet.ledger.frames == BEHIND_FRAMES
    assert outlet.room > 16_000  # the log's reader is bounded by entries
    socket.take()
    outlet.ledger.confirm(outlet.acknowledged())
    assert outlet.room_behind >= 16_384


@given(some_records, st.integers(1, 400), st.booleans(), st.data())
def test_the_credit_is_kept_and_nothing_is_lost(
    records: list[Record], size: int, done: bool, data: st.DataObject
) -> None:
    """In whatever pieces records come and are taken, the text is theirs and the credit holds.

    Past the credit there is at most one record that went with nothing out, and a terminal one.
    """
    outlet, socket = an_outlet(size)
    left = placed(*records, *([DONE] if done else []))
    ledger = outlet.ledger
    while left:
        count = data.draw(st.integers(1, len(left)))
        limit, before, out = ledger.confirmed + size, ledger.sent, ledger.unconfirmed
        whole = outlet.write(left[:count])
        written = [item for item in left if item.end <= ledger.sent]
        assert whole == (len(written) == count)
        for index, item in enumerate(written):
            alone = index == 0 and not out
            assert item.end <= limit or alone or item.record.channel in TERMINAL
        assert ledger.sent == (written[-1].end if written else before)
        left = left[len(written) :]
        socket.take(data.draw(st.integers(0, 600)))
        if not written:  # nothing fits: the client has to take something
            socket.take()
        ledger.confirm(outlet.acknowledged())
    expected: dict[str, str] = {}
    for channel, payload in records:
        if channel is not Channel.NOTICE and payload:
            expected[channel.name.lower()] = expected.get(channel.name.lower(), "") + payload.decode()
    assert {name: text for name, text in channel_texts(socket).items() if text} == expected
    assert len([got for got in socket.events if got.event == "notice"]) == records.count(NOTICE)
    assert outlet.has_terminal == done


@pytest.mark.parametrize(("offset", "missed", "gap"), [(0, 0, 0), (0, 1, 6), (0, 2, 9), (7, 1, 0)], ids=str)
def test_what_a_reader_missed_is_counted_at_the_end(offset: int, missed: int, gap: int) -> None:
    """By the text that was made, whatever the positions say; one that began in the middle cannot tell."""
    records = [content("h\u00e9llo"), content("\u4e16"), content("")]
    done = event(Channel.DONE, {"finish_reason": "stop", "text_bytes": 9})
    metrics = Metrics()
    credit = Credit(1000, 64, explicit=False)
    outlet = Outlet(FakeSocket().as_client(), credit, metrics, offset, 1)
    outlet.write(placed(*records, done, base=offset)[missed:])
    assert metrics.gap_bytes == gap
