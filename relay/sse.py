"""An incremental parser of server-sent events, after the WHATWG's grammar.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

Bytes in, events out; no I/O. The input may be cut anywhere: in a character, in a line end, in the byte
order mark. A line is decoded once it is whole, so no character is ever torn.
"""

from typing import NamedTuple

from relay.errors import WireProtocol

MAX_LINE_BYTES = 1024 * 1024
MAX_EVENT_BYTES = 4 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_RETRY_DIGITS = 15  # a number of milliseconds beyond this is no waiting time, and exact everywhere below


class SseTooLarge(WireProtocol):
    """The stream holds a line or an event over the parser's bound."""

    code = "sse_too_large"


class Event(NamedTuple):
    """One dispatched event. `id` is the one it carried itself; `Parser.last_event_id` is the sticky one."""

    event: str
    data: str
    id: str | None


class Parser:
    """Feed it bytes as they come; it answers with the events that they complete.

    `retry_ms` is the last valid `retry` field, `last_event_id` what a reconnect sends as Last-Event-ID:
    the id of the last dispatched block that had one, also when it had no data. An event whose closing
    empty line has not come is never answered, as the grammar demands.

    Bounds: a line of at most `max_line_bytes`, an event's data of at most `max_event_bytes`. What is
    buffered stays within the two.
    """

    def __init__(
        self, *, max_line_bytes: int = MAX_LINE_BYTES, max_event_bytes: int = MAX_EVENT_BYTES
    ) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self._max_line_bytes = max_line_bytes
        self._max_event_bytes = max_event_bytes
        self._head: bytes | None = b""  # the first bytes, until they are known to be a BOM or not
        self._line: list[bytes] = []  # the pieces of the open line
        self._line_bytes = 0
        self._after_cr = False  # the last byte was CR: a LF that follows belongs to it
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = ""
        self._id: str | None = None
        self._failure: SseTooLarge | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes.

        Raises SseTooLarge once a bound is passed, and for ever after; events before that point are
        answered first, so the error may come with the next call.
        """
        self._check()
        if self._head is not None:
            data = self._without_bom(data)
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            self._after_cr = data[-1] == 0x0D
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        if len(lines) == 1:
            self._keep(data)
            events: list[Event] = []
        else:
            self._line.append(lines[0])
            lines[0] = b"".join(self._line)
            self._line, self._line_bytes = [], 0
            rest = lines.pop()
            events = self._lines(lines)
            self._keep(rest)
        if not events:
            self._check()
        return events

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _without_bom(self, data: bytes) -> bytes:
        """Swallow one byte order mark at the very start; held back while it could still become one."""
        start = (self._head or b"") + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._head = start
            return b""
        self._head = None
        return start.removeprefix(_BOM)

    def _keep(self, piece: bytes) -> None:
        """Remember the start of a line that is not over. A list of pieces: a long line stays linear."""
        if not piece:
            return
        self._line.append(piece)
        self._line_bytes += len(piece)
        if self._line_bytes > self._max_line_bytes:
            self._fail("a line", self._max_line_bytes)

    def _lines(self, lines: list[bytes]) -> list[Event]:
        """The hot loop: everything but `data: ` and the empty line goes to `_field`."""
        events: list[Event] = []
        data = self._data
        for line in lines:
            if not line:
                if data:
                    text = (data[0] if len(data) == 1 else b"\n".join(data)).decode("utf-8", "replace")
                    events.append(Event(self._event or "message", text, self._id))
                    data.clear()
                    self._data_bytes = 0
                if self._id is not None:
                    self.last_event_id = self._id
                    self._id = None
                self._event = ""
            elif len(line) > self._max_line_bytes:
                self._fail("a line", self._max_line_bytes)
                break
            elif line.startswith(b"data: "):
                data.append(line[6:])
                self._data_bytes += len(line)
                if self._data_bytes > self._max_event_bytes:
                    self._fail("an event", self._max_event_bytes)
                    break
            else:
                self._field(line)
                if self._failure is not None:
                    break
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(line)
            if self._data_bytes > self._max_event_bytes:
                self._fail("an event", self._max_event_bytes)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= _RETRY_DIGITS:
            self.retry_ms = int(value)
        # A comment has the empty name; comments and unknown fields are ignored, as the grammar demands.

    def _fail(self, what: str, limit: int) -> None:
        if self._failure is None:
            self._failure = SseTooLarge(f"the event stream holds {what} of more than {limit} bytes")
            self._line.clear()
            self._data.clear()
