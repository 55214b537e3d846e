"""The load client's parser: the same bytes give the same frames, however they are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bench.frames import Frames, fields, split_head
from relay.errors import WireProtocol

DELTA = b'event: delta\nid: 143-1\ndata: {"channel":"content","text":" caf\xc3\xa9"}'

frame = st.sampled_from(
    [DELTA, b": keep-alive", b"event: notice\ndata: {}", b"event: done\nid: 9-1\ndata: {}"]
)


def chunk(content: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%s\r\n" % (len(content), content)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(frame, max_size=20), st.lists(st.integers(0, 10_000)), st.lists(st.integers(0, 10_000)))
def test_frames_do_not_depend_on_how_the_bytes_are_cut(
    sent: list[bytes], chunks: list[int], reads: list[int]
):
    """Frames cut into chunks anywhere, chunks cut into reads anywhere: the frames come out whole."""
    content = b"".join(one + b"\n\n" for one in sent)
    wire = b"".join(chunk(piece) for piece in cut(content, chunks)) + b"0\r\n\r\n"
    frames = Frames()
    received: list[bytes] = []
    for piece in cut(wire, reads):
        received += frames.feed(piece)
    assert received == sent
    assert frames.ended


def test_one_read_of_one_chunk_gives_its_frames():
    """The common case, which has a path of its own."""
    frames = Frames()
    assert frames.feed(chunk(DELTA + b"\n\n")) == [DELTA]
    assert frames.feed(chunk(DELTA + b"\n\n: ok\n\n")) == [DELTA, b": ok"]
    assert not frames.ended


def test_several_chunks_in_one_read():
    """What a loaded client sees: it was busy, and two sends have become one read."""
    assert Frames().feed(chunk(b"a\n\n") + chunk(b"b\n\n") + chunk(b"c\n\n")) == [b"a", b"b", b"c"]


def test_chunk_extensions_are_skipped():
    """RFC 9112, section 7.1.1: a recipient ignores those it does not know."""
    assert Frames().feed(b"3;name=value\r\na\n\n\r\n") == [b"a"]


@pytest.mark.parametrize("data", [b"event: delta\r\n", b"\r\nabc", b"-3\r\nabc\r\n", b"x" * 200])
def test_what_is_not_chunked_is_refused(data: bytes):
    """A body in another encoding must not be counted as an answer."""
    with pytest.raises(WireProtocol):
        Frames().feed(data)


def test_fields_of_a_frame():
    """Name, id and data; lines of data are joined; comments and unknown fields are left out."""
    assert fields(DELTA) == (b"delta", b"143-1", b'{"channel":"content","text":" caf\xc3\xa9"}')
    assert fields(b"data: a\ndata:b\n: no\nretry: 5") == (b"", b"", b"a\nb")
    assert fields(b": ok") == (b"", b"", b"")


def test_the_head_is_split_off():
    """Status, headers in lower case, and the bytes that came with them."""
    split = split_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: a:b\r\n\r\n4\r\n")
    assert split is not None
    head, rest = split
    assert head.status == 200
    assert head.headers == {b"transfer-encoding": b"chunked", b"x": b"a:b"}
    assert rest == b"4\r\n"


def test_half_a_head_waits():
    """Nothing is concluded from a head that is not complete."""
    assert split_head(b"HTTP/1.1 200 OK\r\nTransfer-") is None


@pytest.mark.parametrize("data", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"a" * 20_000])
def test_what_is_not_http_is_refused(data: bytes):
    """Another server on the port is an error, not an endless wait."""
    with pytest.raises(WireProtocol):
        split_head(data)
