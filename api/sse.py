"""Records as server-sent events: pure, and written for speed.

https://html.spec.whatwg.org/multipage/server-sent-events.html. Data is always one line: JSON escapes
line ends. A frame's id is the position where its record ends.
"""

import orjson

from relay.events import Channel, Record

OPENING = b": ok\n\n"  # sent at once: some intermediaries hold the response until its first byte
KEEPALIVE = b": keep-alive\n\n"

# By channel number: an enum member's hash is computed in Python, an index is not.
LABELS = ("delta", "delta", "delta", "delta", "start", "notice", "done", "error", "delta")
_NAMES = tuple(label.encode() for label in LABELS)


def frame(record: Record, end: int, epoch: int) -> bytes:
    """One event with its id."""
    channel, payload = record
    if channel is Channel.CONTENT:
        return b'event: delta\nid: %d-%d\ndata: {"channel":"content","text":%b}\n\n' % (
            end,
            epoch,
            orjson.dumps(payload.decode()),
        )
    return b"event: %b\nid: %d-%d\ndata: %b\n\n" % (_NAMES[channel], end, epoch, _data(record))


def tagged(record: Record, end: int, epoch: int, tag: bytes, all_positions: bytes) -> bytes:
    """One event on a connection of many responses: `tag` is its `"stream":"ID"`, the id tells of all.

    Its own position is in the data, for an ack or a connection of its own.
    """
    body = _data(record)[1:]
    comma = b"" if body == b"}" else b","
    return b'event: %b\nid: %b\ndata: {%b,"position":"%d-%d"%b%b\n\n' % (
        _NAMES[record.channel],
        all_positions,
        tag,
        end,
        epoch,
        comma,
        body,
    )


def private(name: str, data: dict[str, object]) -> bytes:
    """An event about this one consumer: it has no id, for it is no part of the response."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


def reconnect(retry_ms: int) -> bytes:
    """Tell a reader to come back elsewhere, in the word of the contract and in EventSource's own."""
    return b'retry: %d\nevent: reconnect\ndata: {"retry_ms":%d}\n\n' % (retry_ms, retry_ms)


def _data(record: Record) -> bytes:
    channel, payload = record
    if channel is Channel.CONTENT:
        return b'{"channel":"content","text":%b}' % orjson.dumps(payload.decode())
    if channel is Channel.REASONING:
        return b'{"channel":"reasoning","text":%b}' % orjson.dumps(payload.decode())
    if channel is Channel.TOOL_ARGUMENTS:
        text = orjson.dumps(payload[1:].decode())
        return b'{"channel":"tool_calls","index":%d,"text":%b}' % (payload[0], text)
    if channel is Channel.TOOL_CALL:
        return b'{"channel":"tool_calls",%b,"text":""}' % payload[1:-1]
    return payload
