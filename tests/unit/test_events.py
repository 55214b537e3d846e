"""Records: their encoding, their merging and their splitting."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import WireProtocol
from relay.events import (
    FIT_MIN,
    HEADER_MAX,
    MAX_PAYLOAD,
    TEXT,
    Channel,
    Placed,
    Record,
    content,
    decode,
    encode,
    event,
    fit,
    merge,
)

texts = st.text(max_size=40).map(str.encode)
text_records = st.one_of(
    st.builds(Record, st.sampled_from([Channel.CONTENT, Channel.REASONING]), texts),
    st.builds(
        lambda index, text: Record(Channel.TOOL_ARGUMENTS, bytes((index,)) + text), st.integers(0, 2), texts
    ),
)
atomic_records = st.builds(Record, st.sampled_from(sorted(set(Channel) - set(TEXT))), st.binary(max_size=40))
# Lengths around the borders of the header's one, two and three bytes, too.
long_records = st.builds(
    lambda size: Record(Channel.CONTENT, b"x" * size), st.sampled_from([0, 7, 8, 1023, 1024, MAX_PAYLOAD])
)
records = st.one_of(text_records, atomic_records, long_records)
journals = st.lists(records, max_size=20)


def placed(journal: list[Record], base: int = 0) -> list[Placed]:
    """The records with the offsets at which they end when encoded from `base`."""
    out = []
    for record in journal:
        base += len(encode(record))
        out.append(Placed(base, record))
    return out


def channel_text(journal: list[Placed]) -> dict[tuple[Channel, bytes], bytes]:
    """All text, by channel and tool call."""
    whole: dict[tuple[Channel, bytes], bytes] = {}
    for _, (channel, payload) in journal:
        if channel in TEXT:
            mark = payload[:1] if channel is Channel.TOOL_ARGUMENTS else b""
            whole[channel, mark] = whole.get((channel, mark), b"") + payload[len(mark) :]
    return {key: text for key, text in whole.items() if text}


@given(journals, st.integers(0, 10**9))
def test_round_trip(journal: list[Record], base: int) -> None:
    """What is encoded is decoded, each record with the offset where it ends."""
    data = b"".join(map(encode, journal))
    assert decode(data, base) == (placed(journal, base), base + len(data))


@given(journals, st.data())
def test_cut_anywhere(journal: list[Record], data: st.DataObject) -> None:
    """Decoding may stop at any byte and go on from the offset it names: nothing is lost or repeated."""
    whole = b"".join(map(encode, journal))
    cut = data.draw(st.integers(0, len(whole)))
    first, offset = decode(whole[:cut])
    assert offset <= cut
    assert offset == (first[-1].end if first else 0)
    rest, end = decode(whole[offset:], offset)
    assert first + rest == placed(journal)
    assert end == len(whole)


@given(records)
def test_header_is_small(record: Record) -> None:
    """The header is one byte up to 7 bytes of payload, two up to 1,023, and never more than three."""
    size = len(record.payload)
    expected = 1 if size < 8 else 2 if size < 1024 else 3
    assert len(encode(record)) - size == expected <= HEADER_MAX


def test_payload_too_long_to_encode() -> None:
    """A payload that no header can describe is refused, not wrapped around."""
    assert len(encode(Record(Channel.CONTENT, b"x" * 131_071))) == 131_074
    with pytest.raises(ValueError, match="131072 bytes"):
        encode(Record(Channel.CONTENT, b"x" * 131_072))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x80\x80",  # a fourth byte would follow
        b"\xff\xff\xff\xff",
        b"\x80\x00",  # a number with a needless byte
        b"\x8f\x81\x00",
        b"\x79",  # channel 9, its payload not even there
        b"\x0f",
    ],
)
def test_no_header(data: bytes) -> None:
    """A header that no encoder writes is an error at once; no bytes are waited for."""
    with pytest.raises(WireProtocol):
        decode(data)


@given(st.binary(max_size=64))
def test_garbage(data: bytes) -> None:
    """Any bytes either decode to records that encode to the same bytes, or are refused."""
    try:
        found, offset = decode(data)
    except WireProtocol:
        return
    assert b"".join(encode(record) for _, record in found) == data[:offset]


@given(journals)
def test_merge_keeps_everything(journal: list[Record]) -> None:
    """Merging changes no channel's text, no atomic record, no order, and ends where the journal ends."""
    before = placed(journal)
    after = merge(before)
    assert channel_text(after) == channel_text(before)
    atomic = [item for item in before if item.record.channel not in TEXT]
    assert [item for item in after if item.record.channel not in TEXT] == atomic
    assert {item.end for item in after} <= {item.end for item in before}
    assert [item.end for item in after] == sorted(item.end for item in after)
    assert (after[-1].end if after else 0) == (before[-1].end if before else 0)


@given(journals)
def test_merge_is_thorough(journal: list[Record]) -> None:
    """No two neighbours of one text channel are left, so merging again changes nothing."""
    after = merge(placed(journal))
    assert merge(after) == after
    for (_, left), (_, right) in pairwise(after):
        if left.channel is right.channel and left.channel in TEXT:
            assert left.channel is Channel.TOOL_ARGUMENTS
            assert left.payload[:1] != right.payload[:1]


@given(journals)
def test_merge_ends_where_the_last_of_a_run_did(journal: list[Record]) -> None:
    """A merged record ends where the last of its run ended: a reader may stop there and resume."""

    def run_of(item: tuple[int, Placed]) -> object:
        index, (_, (channel, payload)) = item
        if channel not in TEXT:
            return index
        return channel, payload[:1] if channel is Channel.TOOL_ARGUMENTS else b""

    before = placed(journal)
    ends = [list(run)[-1][1].end for _, run in groupby(enumerate(before), run_of)]
    assert [item.end for item in merge(before)] == ends


@given(st.text(max_size=300), st.integers(FIT_MIN, 40))
def test_fit(text: str, limit: int) -> None:
    """Pieces are within the limit, whole characters, never empty, and concatenate to the text."""
    for prefix, channel in ((b"", Channel.CONTENT), (b"\x07", Channel.TOOL_ARGUMENTS)):
        pieces = list(fit(Record(channel, prefix + text.encode()), limit))
        assert all(piece.channel is channel and len(piece.payload) <= limit for piece in pieces)
        assert all(piece.payload.startswith(prefix) for piece in pieces)
        bodies = [piece.payload[len(prefix) :] for piece in pieces]
        assert "".join(body.decode() for body in bodies) == text
        assert len(bodies) == 1 or all(bodies)


@given(st.binary(max_size=200), st.integers(FIT_MIN, 20))
def test_fit_of_what_is_not_utf8(payload: bytes, limit: int) -> None:
    """Bytes that are no text are split too, without loss and in pieces of a fair size."""
    pieces = [piece.payload for piece in fit(Record(Channel.CONTENT, payload), limit)]
    assert b"".join(pieces) == payload
    assert all(limit - 3 <= len(piece) <= limit for piece in pieces[:-1])


def test_fit_refuses_what_it_cannot_do() -> None:
    """An atomic record is not split, and a limit below one character is not met by tearing it."""
    with pytest.raises(ValueError, match="atomic"):
        list(fit(Record(Channel.DONE, b"x" * (MAX_PAYLOAD + 1))))
    with pytest.raises(ValueError, match="at least 5"):
        list(fit(content("🌊"), 4))


def test_event_is_bounded() -> None:
    """An atomic record is JSON of at most MAX_PAYLOAD bytes."""
    assert event(Channel.NOTICE, {"kind": "live"}) == Record(Channel.NOTICE, b'{"kind":"live"}')
    with pytest.raises(ValueError, match="at most"):
        event(Channel.NOTICE, {"kind": "x" * MAX_PAYLOAD})
