"""The event stream parser against the WHATWG's grammar and its own examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.sse import Event, Parser, SseTooLarge


def parse(*pieces: bytes) -> list[Event]:
    """All events of a stream fed in these pieces."""
    parser = Parser()
    return [event for piece in pieces for event in parser.feed(piece)]


def messages(stream: bytes) -> list[str]:
    """The data of all events."""
    return [event.data for event in parse(stream)]


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a \n\n", [" a "]),  # one space goes, no more
        (b"data\n\n", [""]),
        (b"data:\n\n", [""]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", ["a\nb"]),
        (b"data: a\rdata: b\r\r", ["a\nb"]),
        (b"data: a\r\n\rdata: b\n\r\n", ["a", "b"]),
        (b"data: a:b: c\n\n", ["a:b: c"]),
        (b"data: a", []),
        (b"data: a\n", []),  # what no empty line closes is not dispatched
        (b"\n\n\n", []),
        (b"", []),
        (b": a comment\n\n", []),
        (b":\n\ndata: a\n\n", ["a"]),
        (b"event: x\n\ndata: a\n\n", ["a"]),
        (b"Data: a\n\n", []),  # names are compared as they are
        (b" data: a\n\n", []),
        (b"data : a\n\n", []),
        (b"other: a\nother\n\n", []),
        (b"data: a\0b\n\n", ["a\0b"]),
        ("data: é世🌊\n\n".encode(), ["é世🌊"]),
        (b"data: \xff\xc3\n\n", ["\ufffd\ufffd"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),  # one mark is swallowed, no more
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),  # and only at the start
        # the examples of the standard, the first one shortened
        (b"data: The first message.\n\ndata: This is the second message, it\ndata: has two lines.\n\n",
         ["The first message.", "This is the second message, it\nhas two lines."]),
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         ["first event", "second event", " third event"]),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
    ],
)  # fmt: skip
def test_data(stream: bytes, data: list[str]) -> None:
    """The data of each dispatched event is that of the standard."""
    assert messages(stream) == data


def test_event_type() -> None:
    """An event has the type of its last `event` field, `message` without one, and hands it to no other."""
    assert parse(b"event: add\ndata: 1\n\ndata: 2\n\nevent: a\nevent: b\ndata: 3\n\nevent:\ndata: 4\n\n") == [
        Event("add", "1", None),
        Event("message", "2", None),
        Event("b", "3", None),
        Event("message", "4", None),
    ]


def test_event_type_of_a_block_without_data() -> None:
    """A block without data is not dispatched, and its type is forgotten."""
    assert parse(b"event: add\n\ndata: 1\n\n") == [Event("message", "1", None)]


def test_ids() -> None:
    """An event tells its own id; the parser keeps the last one dispatched."""
    parser = Parser()
    assert parser.last_event_id == ""
    assert parser.feed(b"id: 5-1\ndata: a\n\ndata: b\n\n") == [
        Event("message", "a", "5-1"),
        Event("message", "b", None),
    ]
    assert parser.last_event_id == "5-1"
    parser.feed(b"id: 6-1\ndata: c\n")
    assert parser.last_event_id == "5-1"  # not before the block is closed: it may never be
    parser.feed(b"\n")
    assert parser.last_event_id == "6-1"
    parser.feed(b"id: 7-1\n\n")
    assert parser.last_event_id == "7-1"  # a block without data counts
    parser.feed(b"id: 8\0-1\ndata: d\n\n")
    assert parser.last_event_id == "7-1"  # one with NUL does not
    assert parser.feed(b"id\ndata: e\n\n") == [Event("message", "e", "")]
    assert parser.last_event_id == ""


@pytest.mark.parametrize(
    ("field", "retry_ms"),
    [
        (b"retry: 1500", 1500), (b"retry:0", 0), (b"retry: 007", 7), (b"retry:", None), (b"retry", None),
        (b"retry: 1.5", None), (b"retry: -1", None), (b"retry: +1", None), (b"retry: 1 ", None),
        (b"retry: 1e3", None), ("retry: ٣".encode(), None), (b"retry: " + b"9" * 5000, None),
    ],
)  # fmt: skip
def test_retry(field: bytes, retry_ms: int | None) -> None:
    """A retry of digits alone is taken at once, without waiting for the block's end."""
    parser = Parser()
    parser.feed(field + b"\n")
    assert parser.retry_ms == retry_ms


def test_cr_at_the_end_of_a_piece() -> None:
    """A CR ends its line at once; a LF that follows in the next piece belongs to it."""
    parser = Parser()
    assert parser.feed(b"data: a\r\n\r") == [Event("message", "a", None)]
    assert parser.feed(b"\ndata: b\r") == []
    assert parser.feed(b"") == []
    assert parser.feed(b"\r") == [Event("message", "b", None)]
    assert parser.feed(b"data: c\n\n") == [Event("message", "c", None)]


lines = st.one_of(
    st.sampled_from(
        [
            b"data: ",
            b"data",
            b"data: a",
            b"id: 1",
            b"id",
            b"id: \0",
            b"event: x",
            b"retry: 5",
            b": c",
            b"",
            b"",
        ]
    ),
    st.text(max_size=8).map(lambda text: b"data: " + text.encode()),
    st.binary(max_size=8),
)
streams = st.lists(st.tuples(lines, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=30).map(
    lambda parts: b"".join(line + end for line, end in parts)
)


@given(st.booleans(), streams, st.data())
def test_any_chunking(mark: bool, stream: bytes, data: st.DataObject) -> None:
    """However the bytes are cut, the events, the ids and the retry are the same."""
    stream = b"\xef\xbb\xbf" * mark + stream
    whole, pieces, single = Parser(), Parser(), Parser()
    events = whole.feed(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    cut = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [event for piece in cut for event in pieces.feed(piece)] == events
    assert [event for byte in stream for event in single.feed(bytes((byte,)))] == events
    state = whole.last_event_id, whole.retry_ms
    assert (pieces.last_event_id, pieces.retry_ms) == (single.last_event_id, single.retry_ms) == state


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)))))
def test_round_trip(texts: list[str]) -> None:
    """Text framed as events comes back as it was."""
    stream = "".join(f"data: {text}\n\n" for text in texts).encode()
    assert messages(stream) == texts


class TestBounds:
    """What is buffered has a limit, and passing it is an error for good."""

    def test_line_in_one_piece(self) -> None:
        """A line over the limit is refused, also when it is whole."""
        parser = Parser(max_line_bytes=20)
        assert parser.feed(b"data: " + b"x" * 14 + b"\n\n") == [Event("message", "x" * 14, None)]
        with pytest.raises(SseTooLarge, match="a line of more than 20 bytes"):
            parser.feed(b"data: " + b"x" * 15 + b"\n\n")

    def test_line_that_never_ends(self) -> None:
        """A line without end is refused as soon as it is over the limit, and what was held is let go."""
        parser = Parser(max_line_bytes=100)
        for _ in range(10):
            parser.feed(b"x" * 10)
        with pytest.raises(SseTooLarge):
            parser.feed(b"x")
        assert not parser._line

    @pytest.mark.parametrize("line", [b"data: xxxx\n", b"data:xxxxx\n", b"data\n"])
    def test_event_that_never_ends(self, line: bytes) -> None:
        """An event of ever more lines is refused once over the limit, and so is every call after."""
        parser = Parser(max_event_bytes=100)
        with pytest.raises(SseTooLarge, match="an event of more than 100 bytes"):
            parser.feed(line * 30)
        with pytest.raises(SseTooLarge):
            parser.feed(b"\n")

    def test_events_before_the_limit(self) -> None:
        """Events that came before the one too large are answered; the error comes with the next call."""
        parser = Parser(max_line_bytes=20)
        assert parser.feed(b"data: a\n\ndata: " + b"x" * 30) == [Event("message", "a", None)]
        with pytest.raises(SseTooLarge):
            parser.feed(b"data: b\n\n")

    def test_many_events_are_no_large_event(self) -> None:
        """The limit is of one event, not of the stream."""
        parser = Parser(max_event_bytes=100)
        assert len(parser.feed(b"data: xxxxxxxx\n\n" * 1000)) == 1000
