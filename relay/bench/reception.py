"""What a reader of any SSE server has received: the answer's head, its body, its events. Pure; no sockets.

Where the server is a relay (it names the consumer in `Relay-Consumer`), positions must grow and the text
must have the digest of `done`. Of others it is known only what came, and whether it ended.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from relay.bench.frames import Chunks, Head, split_head
from relay.bench.histogram import Histogram
from relay.client_events import Delta, Done, Failed, Ledger, Notice, Rewind, typed
from relay.errors import WireProtocol
from relay.sse import Event, Parser

_TERMINAL_EVENTS = frozenset(("done", "error"))
_OPENAI_END = "[DONE]"
_REFUSAL_SHOWN_BYTES = 200

OnEvent = Callable[[Event, float], object]


class Ended(StrEnum):
    """How a reader's last connection ended."""

    TERMINAL = "terminal"  # an event that ends the response came
    CLOSED = "closed"  # the server closed without one
    RESET = "reset"  # the server, or something between, cut the connection
    OPEN = "open"  # nothing has ended when the time was over
    LEFT = "left"  # the reader itself went for good: it vanished, or reset the connection
    REFUSED = "refused"  # no connection, or an answer that is no event stream


@dataclass(slots=True)
class Outcome:
    """What became of one reader, over all of its connections. Times in seconds of the event loop."""

    ended: Ended = Ended.OPEN
    connections: int = 0
    status: int = 0
    received_bytes: int = 0  # read from sockets
    unread_bytes: int = 0  # arrived, and left in the reader's own kernel at the end
    events: int = 0
    text_bytes: int = 0
    asked_at: float = 0.0
    first_byte_at: float | None = None
    last_event_at: float | None = None
    gaps: Histogram = field(default_factory=Histogram)  # between two events
    notices: list[str] = field(default_factory=list)
    position: int = 0  # of the last id, in bytes of the response
    finish_reason: str | None = None
    exact: bool | None = None  # the text has the digest of `done`; None where that is not known
    problem: str = ""

    @property
    def first_byte_s(self) -> float | None:
        """From the first request to the first byte of an answer."""
        return None if self.first_byte_at is None else self.first_byte_at - self.asked_at


class Reception:
    """One reader's side of the protocol. `begin` for each connection, then `feed` what its socket gives."""

    def __init__(self, outcome: Outcome, on_event: OnEvent | None = None) -> None:
        self.outcome = outcome
        self.headers: dict[bytes, bytes] = {}
        self.last_id: str | None = None
        self.body_ended = False
        self.on_event = on_event
        self._ledger = Ledger()
        self.begin()

    def begin(self) -> None:
        """A new connection: its answer starts from the head."""
        self._raw = b""
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._parser = Parser()
        self._tail = b""
        self.body_ended = False

    @property
    def is_mid_frame(self) -> bool:
        """Whether the last event is cut where the bytes end so far."""
        return bool(self._tail) and not self._tail.endswith((b"\n\n", b"\r\r", b"\r\n\r\n"))

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to read."""
        return self.body_ended or self.outcome.ended is Ended.TERMINAL

    @property
    def consumer(self) -> str | None:
        """The reader's name at a relay; None where the server is another."""
        name = self.headers.get(b"relay-consumer")
        return name.decode("latin-1") if name else None

    def feed(self, data: bytes, now: float) -> None:
        """Take what the socket gave. Raises WireProtocol for what is no event stream, or not in order."""
        outcome = self.outcome
        outcome.received_bytes += len(data)
        if outcome.first_byte_at is None:
            outcome.first_byte_at = now
        if self._head is None:
            split = split_head(self._raw + data)
            if split is None:
                self._raw += data
                return
            self._head, data = split
            self._raw = b""
            self._opened(self._head, data)
        content = data if self._chunks is None else self._chunks.content(data)
        self.body_ended = self._chunks is not None and self._chunks.ended
        self._tail = (self._tail + content)[-4:]
        for event in self._parser.feed(content):
            self._take(event, now)

    def _opened(self, head: Head, rest: bytes) -> None:
        self.outcome.status = head.status
        self.headers = head.headers
        if head.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._chunks = Chunks()
        if head.status == 204 and self.outcome.events:
            self.outcome.ended, self.body_ended = (
                Ended.TERMINAL,
                True,
            )  # a relay: there is nothing after this id
        elif not head.headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
            told = rest[:_REFUSAL_SHOWN_BYTES].decode(errors="replace")
            raise WireProtocol(f"the answer is {head.status} and no event stream: {told}")

    def _take(self, event: Event, now: float) -> None:
        outcome = self.outcome
        outcome.events += 1
        if outcome.last_event_at is not None:
            outcome.gaps.record(int((now - outcome.last_event_at) * 1e6))
        outcome.last_event_at = now
        if event.id is not None:
            self.last_id = event.id
        if self.consumer is not None:
            self._check(event)
        else:
            outcome.text_bytes += len(event.data.encode())
        if event.event in _TERMINAL_EVENTS or event.data == _OPENAI_END:
            outcome.ended = Ended.TERMINAL
        if self.on_event is not None:
            self.on_event(event, now)

    def _check(self, event: Event) -> None:
        """A relay's event: its order, and at the end the digest of the text."""
        outcome = self.outcome
        try:
            told = typed(event, self._ledger)
        except WireProtocol:
            outcome.exact = False
            raise
        outcome.position = self._ledger.position.offset
        match told:
            case Delta(channel="content"):
                outcome.text_bytes += len(told.text.encode())
            case Notice():
                outcome.notices.append(told.kind)
            case Rewind():
                outcome.notices.append("rewind")
            case Done():
                outcome.finish_reason = told.finish_reason
                outcome.exact = told.verified or None
            case Failed():
                outcome.problem = f"{told.code}: {told.message}"
            case _:
                pass
