"""Records: what a response is made of, and how they lie in the journal.

A record is a channel and a payload. In the journal it is a header and the payload; the header is one
little-endian base-128 number, `length << 4 | channel`: one byte up to 7 bytes of payload, two up to
1,023, three up to 131,071. It is self-delimiting from any record boundary.

Text records of one channel merge with their neighbour; events (start, notice, done, error) and the
opening of a tool call are atomic. Everything here is pure.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

from relay.errors import WireProtocol

# A record over this is split: a journal read of one credit (16 KiB) then always holds a whole record,
# and no slow reader is handed a frame larger than half its credit.
MAX_PAYLOAD = 8192
# What a writer splits text into. A reader may be handed one record over its credit, and explicit windows
# are small; neighbours merge again on the way out.
PIECE = 1000
HEADER_MAX = 3
FIT_MIN = 5  # a tool call's index and the longest character


class Channel(IntEnum):
    """What a payload is. The numbers are on disk: never reuse one."""

    CONTENT = 0  # UTF-8 text
    REASONING = 1  # UTF-8 text
    TOOL_ARGUMENTS = 2  # one byte: the tool call's index; then UTF-8 text
    TOOL_CALL = 3  # JSON {"index","id","name"}: opens a tool call
    START = 4  # JSON, and so are those below
    NOTICE = 5
    DONE = 6
    ERROR = 7
    EXTRA = 8  # JSON {"channel", ...}: a delta that is passed through as it is (refusal, logprobs)


TEXT = (Channel.CONTENT, Channel.REASONING, Channel.TOOL_ARGUMENTS)
# Tuples, because an enum member's hash is computed in Python, and this is asked for every token.
TERMINAL = (Channel.DONE, Channel.ERROR)


class Record(NamedTuple):
    """One record. For TOOL_ARGUMENTS the payload's first byte is the tool call's index."""

    channel: Channel
    payload: bytes


class Placed(NamedTuple):
    """A record, and the offset at which it ends in the journal."""

    end: int
    record: Record


def content(text: str) -> Record:
    """A record of answer text."""
    return Record(Channel.CONTENT, text.encode())


def event(channel: Channel, data: dict[str, Any]) -> Record:
    """An atomic record. Raises ValueError when its JSON is over MAX_PAYLOAD."""
    payload = orjson.dumps(data)
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"an atomic record of {len(payload)} bytes; at most {MAX_PAYLOAD}")
    return Record(channel, payload)


def encode(record: Record) -> bytes:
    """Header and payload. Payloads are at most MAX_PAYLOAD: split first (`fit`)."""
    channel, payload = record
    number = len(payload) << 4 | channel
    if number < 0x80:
        return bytes((number,)) + payload
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7)) + payload
    if number < 0x200000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14)) + payload
    raise ValueError(f"a payload of {len(payload)} bytes does not fit a record")


def decode(data: bytes, base: int = 0) -> tuple[list[Placed], int]:
    """The whole records in `data`, which starts at a record boundary at offset `base`.

    Returns the records, each with the offset where it ends, and the offset up to which `data` was
    understood: a record cut short at the end is left for the next read. Raises WireProtocol for a
    header that no encoder writes.
    """
    placed: list[Placed] = []
    at, size = 0, len(data)
    while at < size:
        number, shift, body = 0, 0, at
        while True:
            if body == size:
                return placed, base + at
            byte = data[body]
            body += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 14:
                raise WireProtocol(f"not a record boundary at {base + at}")
        # Both are judged before the body is there: bytes that are no header must not be waited on.
        if not byte and shift:
            raise WireProtocol(f"not a record boundary at {base + at}")
        if number & 15 > _LAST_CHANNEL:
            raise WireProtocol(f"no such channel at {base + at}: {number & 15}")
        end = body + (number >> 4)
        if end > size:
            break
        placed.append(Placed(base + end, Record(_CHANNELS[number & 15], data[body:end])))
        at = end
    return placed, base + at


_CHANNELS = tuple(Channel)
_LAST_CHANNEL = int(max(Channel))


def merge(placed: Iterable[Placed]) -> list[Placed]:
    """Neighbours of one text channel become one record that ends where the last of them does.

    The concatenation of every channel's text is unchanged, and so are the end offsets that remain.
    """
    out: list[Placed] = []
    run: list[bytes] = []  # the payloads of the open run; joined once, so merging is linear
    kind: Channel | None = None
    index = b""
    end = 0
    for here, (channel, payload) in placed:
        mark = payload[:1] if channel is Channel.TOOL_ARGUMENTS else b""
        if run and channel is kind and mark == index:
            run.append(payload[len(mark) :])
        else:
            if run and kind is not None:
                out.append(Placed(end, Record(kind, b"".join(run))))
            run, kind, index = [payload], channel, mark
            if channel not in TEXT:
                out.append(Placed(here, Record(channel, payload)))
                run, kind = [], None
        end = here
    if run and kind is not None:
        out.append(Placed(end, Record(kind, b"".join(run))))
    return out


def fit(record: Record, limit: int = MAX_PAYLOAD) -> Iterator[Record]:
    """Split a text record into pieces of at most `limit` bytes, never inside a UTF-8 character.

    Raises ValueError for an atomic record over `limit`, and for a limit that cannot hold a tool call's
    index and one character.
    """
    channel, payload = record
    if limit < FIT_MIN:
        raise ValueError(f"a limit of {limit} bytes; at least {FIT_MIN}")
    if len(payload) <= limit:
        yield record
        return
    if channel not in TEXT:
        raise ValueError(f"an atomic record of {len(payload)} bytes; at most {limit}")
    mark = payload[:1] if channel is Channel.TOOL_ARGUMENTS else b""
    at = len(mark)
    room = limit - len(mark)
    while at < len(payload):
        end = min(at + room, len(payload))
        if end < len(payload):
            end -= _inside_character(payload, end)
        yield Record(channel, mark + payload[at:end])
        at = end


def _inside_character(payload: bytes, at: int) -> int:
    """How far `at` lies behind the start of the character it would cut: 0 to 3."""
    for back in range(4):
        if payload[at - back] & 0xC0 != 0x80:
            return back
    return 0  # not UTF-8: there is no character to keep whole
