"""Records as server-sent events: what an EventSource makes of a frame is the record."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import sse
from relay.events import MAX_PAYLOAD, Channel, Record, content, decode, encode, event, merge
from relay.sse import Event, Parser

# Line ends of every kind, and what else could end a line or a frame where an intermediary looks for it.
NASTY = '\r\n\n\n\r\0\x85\u2028\u2029\ufeff: data: id: event: \x1b"\\</script>🌊'

texts = st.one_of(st.text(), st.lists(st.sampled_from(NASTY), max_size=20).map("".join))
json_values = st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers(0, 2**53), max_size=4)


def parsed(data: bytes) -> list[Event]:
    """What a client makes of these bytes."""
    return Parser().feed(data)


def the_event(record: Record, end: int = 7, epoch: int = 1) -> tuple[Event, Any]:
    """The one event of a record's frame, and its data."""
    (got,) = parsed(sse.frame(record, end, epoch))
    return got, json.loads(got.data)


def test_a_frame_is_the_contract_s() -> None:
    """Content is a delta whose id is the position where it ends."""
    assert sse.frame(content("Hello"), 143, 1) == (
        b'event: delta\nid: 143-1\ndata: {"channel":"content","text":"Hello"}\n\n'
    )


@given(texts)
def test_any_text_is_one_line_of_data(text: str) -> None:
    """Whatever the model writes, a frame is three lines and an empty one: nothing can end it early."""
    for record in (content(text), Record(Channel.REASONING, text.encode())):
        frame = sse.frame(record, 5, 2)
        assert frame.endswith(b"\n\n")
        assert frame.count(b"\n") == 4
        assert b"\r" not in frame
        got, data = the_event(record)
        assert got.event == "delta"
        assert data["text"] == text


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**9 - 1))
def test_the_id_is_the_position(end: int, epoch: int) -> None:
    """Every frame of a record carries where it ends and under which epoch."""
    for record in (content("x"), event(Channel.DONE, {}), Record(Channel.REASONING, b"y")):
        assert the_event(record, end, epoch)[0].id == f"{end}-{epoch}"


@given(texts, st.integers(0, 255))
def test_tool_arguments_say_whose_they_are(text: str, index: int) -> None:
    """The arguments of a tool call are a delta with the call's index; the text is theirs alone."""
    got, data = the_event(Record(Channel.TOOL_ARGUMENTS, bytes((index,)) + text.encode()))
    assert got.event == "delta"
    assert data == {"channel": "tool_calls", "index": index, "text": text}


@given(st.integers(0, 255), texts, texts)
def test_a_tool_call_opens_with_its_name(index: int, call_id: str, name: str) -> None:
    """A tool call opens with its index, id and name, in the shape of its later deltas."""
    got, data = the_event(event(Channel.TOOL_CALL, {"index": index, "id": call_id, "name": name}))
    assert got.event == "delta"
    assert data == {"channel": "tool_calls", "index": index, "id": call_id, "name": name, "text": ""}


@pytest.mark.parametrize(
    ("channel", "name"),
    [
        (Channel.START, "start"),
        (Channel.NOTICE, "notice"),
        (Channel.DONE, "done"),
        (Channel.ERROR, "error"),
        (Channel.EXTRA, "delta"),
    ],
)
@given(data=json_values)
def test_an_atomic_record_passes_as_it_is(channel: Channel, name: str, data: dict[str, Any]) -> None:
    """Events about the response keep their JSON, under the contract's name."""
    got, told = the_event(event(channel, data))
    assert got.event == name
    assert told == data


@pytest.mark.parametrize("channel", list(Channel))
def test_every_channel_has_a_frame(channel: Channel) -> None:
    """A channel added to the records needs a name here: an unknown one would be another's."""
    payload = {
        Channel.CONTENT: b"x",
        Channel.REASONING: b"x",
        Channel.TOOL_ARGUMENTS: b"\x00x",
        Channel.TOOL_CALL: b'{"index":0}',
    }.get(channel, b'{"a":1}')
    name = {"START": "start", "NOTICE": "notice", "DONE": "done", "ERROR": "error"}.get(channel.name, "delta")
    assert the_event(Record(channel, payload))[0].event == name


@given(st.lists(texts.filter(bool), min_size=1, max_size=20))
def test_frames_of_merged_records_say_the_same(pieces: list[str]) -> None:
    """However records are merged into frames, a client has the same text at the same last id."""
    data = b"".join(encode(record) for piece in pieces for record in [content(piece[:1000])])
    placed, end = decode(data)
    for frames in (placed, merge(placed), [*merge(placed[:3]), *merge(placed[3:])]):
        events = parsed(b"".join(sse.frame(item.record, item.end, 1) for item in frames))
        assert "".join(json.loads(got.data)["text"] for got in events) == "".join(p[:1000] for p in pieces)
        assert events[-1].id == f"{end}-1"


@given(json_values)
def test_a_private_event_has_no_id(data: dict[str, Any]) -> None:
    """What is about one consumer leaves the client's last id as it was: it is no part of the response."""
    parser = Parser()
    parser.feed(sse.frame(content("x"), 20, 1))
    (got,) = parser.feed(sse.private("rewind", data))
    assert (got.event, json.loads(got.data), got.id) == ("rewind", data, None)
    assert parser.last_event_id == "20-1"


def test_reconnect_is_for_readers_and_for_event_source() -> None:
    """The drain tells the waiting time in the event's data, and in the field that EventSource obeys."""
    parser = Parser()
    (got,) = parser.feed(sse.reconnect(1250))
    assert (got.event, json.loads(got.data), got.id) == ("reconnect", {"retry_ms": 1250}, None)
    assert parser.retry_ms == 1250


@pytest.mark.parametrize("comment", [sse.OPENING, sse.KEEPALIVE])
def test_comments_are_no_events(comment: bytes) -> None:
    """The opening and the keep-alive are seen by intermediaries alone."""
    parser = Parser()
    assert parser.feed(comment) == []
    assert comment.startswith(b":")
    (got,) = parser.feed(sse.frame(content("x"), 1, 1))
    assert got.event == "delta"


def test_a_frame_costs_little_more_than_its_text() -> None:
    """The largest record of text makes a frame that a small window can hold soon: no hidden growth."""
    assert len(sse.frame(content("x" * MAX_PAYLOAD), 10**14, 10**8)) < MAX_PAYLOAD + 128
