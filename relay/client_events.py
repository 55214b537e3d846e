"""What a stream says, as the client hands it on, and the ledger that checks it. Pure: no I/O.

The errors here complete the tree of `relay.errors` on the client's side:

    Disconnected     (Unavailable)    no answer, or too many attempts without an event
    OutOfOrder       (WireProtocol)   a position went back, or stood still, without a rewind
    DigestMismatch   (WireProtocol)   the content received is not the content made
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from relay.errors import (
    Conflict,
    Expired,
    Forbidden,
    InvalidValue,
    Malformed,
    NotFound,
    Overloaded,
    RelayError,
    TooLarge,
    Unauthorized,
    Unavailable,
    WireProtocol,
)
from relay.position import START, Position
from relay.sse import Event as SseEvent

# Places to which a rewind can be taken back without reading the response again. Older ones go first:
# a rewind further than that starts over, which is slower and just as exact.
_MARKS = 1024
_BY_STATUS: dict[int, type[RelayError]] = {
    400: Malformed, 401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 410: Expired,
    413: TooLarge, 422: InvalidValue, 429: Overloaded,
}  # fmt: skip


class Disconnected(Unavailable):
    """No answer from the relay, or too many attempts without an event."""

    code = "disconnected"


class OutOfOrder(WireProtocol):
    """A position went back, or stood still, without a rewind."""

    code = "out_of_order"


class DigestMismatch(WireProtocol):
    """The content received is not the content that was made."""

    code = "digest_mismatch"


@dataclass(frozen=True, slots=True)
class Start:
    """The generation has begun."""

    position: Position
    model: str
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of a channel; `raw` is the event as it came, for tool calls and what else a channel holds."""

    position: Position
    channel: str
    text: str
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Notice:
    """The relay says what it does about pressure. Nothing is lost by it."""

    position: Position
    kind: str
    level: int | None
    reason: str
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The end. `verified`: the digest was compared; a reader that began in the middle cannot."""

    position: Position
    finish_reason: str
    text_bytes: int
    sha256: str
    verified: bool
    usage: dict[str, Any] | None
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The end, without the rest."""

    position: Position
    code: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Rewind:
    """Text was lost in a failover: drop all that came after `position`, other text follows.

    `position` is one that an earlier event had, or the one the stream began at. When it is not `exact`,
    the client could only go back further than the relay said, and reconnects by itself.
    """

    position: Position
    exact: bool


@dataclass(frozen=True, slots=True)
class Reconnect:
    """This node goes away; the client connects again by itself."""

    position: Position
    retry_ms: float


Event = Start | Delta | Notice | Done | Failed | Rewind | Reconnect


class _Mark(NamedTuple):
    position: Position
    digest: "hashlib._Hash"
    text_bytes: int


class Ledger:
    """How far a reader is, and the digest of the content up to there; it can be taken back."""

    def __init__(self, after: Position = START) -> None:
        self._began = _Mark(after, hashlib.sha256(), 0)
        self._marks: deque[_Mark] = deque(maxlen=_MARKS)
        self._digest = self._began.digest.copy()
        self._text_bytes = 0
        self.position = after

    def begin_at(self, position: Position) -> None:
        """The relay says where this reader begins; nothing has been read yet."""
        if position.offset:
            self._began = self._began._replace(position=position)
            self.position = position

    def advance(self, event_id: str | None, *, kind: str) -> Position:
        """Move to an event's position. Raises OutOfOrder when that is not forward.

        A notice may be about one reader alone: then it has no place in the response, and may stand still.
        """
        if event_id is None and kind in {"notice", "error"}:
            return self.position
        there = _position(event_id or "")
        stands = there.offset == self.position.offset and kind == "notice"
        if there.offset <= self.position.offset and not stands:
            raise OutOfOrder(f"{kind} at {there} after {self.position}")
        self.position = there
        return there

    def add(self, text: str) -> None:
        """Count content that ends at the present position."""
        data = text.encode()
        self._digest.update(data)
        self._text_bytes += len(data)

    def mark(self) -> None:
        """Remember the present position as one to which a rewind can go back."""
        self._marks.append(_Mark(self.position, self._digest.copy(), self._text_bytes))

    def rewind(self, target: int) -> Rewind:
        """Go back to the last mark at or before `target`, or to where the stream began."""
        while self._marks and self._marks[-1].position.offset > target:
            self._marks.pop()
        mark = self._marks[-1] if self._marks else self._began
        self.position = Position(min(mark.position.offset, target), mark.position.epoch)
        self._digest, self._text_bytes = mark.digest.copy(), mark.text_bytes
        return Rewind(self.position, exact=self.position.offset == target)

    def verify(self, text_bytes: int, sha256: str) -> bool:
        """Whether the whole content was compared. Raises DigestMismatch when it is not the one made."""
        if self._began.position.offset or not sha256:
            return False
        if self._digest.hexdigest() != sha256:
            raise DigestMismatch(
                f"{self._text_bytes} bytes of content with SHA-256 {self._digest.hexdigest()}; "
                f"the relay made {text_bytes} bytes with {sha256}"
            )
        return True


def typed(sse: SseEvent, ledger: Ledger) -> Event | None:
    """The typed form of an event, its position checked and entered; None for kinds of a later version.

    Raises OutOfOrder, DigestMismatch, and WireProtocol for what cannot be read.
    """
    raw = _object(sse)
    if sse.event == "reconnect":
        return Reconnect(ledger.position, float(raw.get("retry_ms", 0)))
    if sse.event == "rewind":
        return ledger.rewind(_offset(raw.get("position")))
    if sse.event not in _MAKERS:
        return None
    ledger.advance(sse.id, kind=sse.event)
    event = _MAKERS[sse.event](raw, ledger)
    ledger.mark()
    return event


def refusal(status: int, body: bytes, retry_after: str | None) -> RelayError:
    """The error that an HTTP answer stands for; its message is the relay's, when the relay gave one."""
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 else WireProtocol)
    try:
        told = orjson.loads(body)["error"]
        message, param = str(told["message"]), told.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        message, param = f"HTTP {status}", None
    wait_s = float(retry_after) if retry_after and retry_after.isdigit() else None
    return kind(message, param=param, retry_after_s=wait_s)


def _object(sse: SseEvent) -> dict[str, Any]:
    try:
        raw = orjson.loads(sse.data)
    except orjson.JSONDecodeError as error:
        raise WireProtocol(f"{sse.event}: not JSON: {sse.data[:80]!r}") from error
    if not isinstance(raw, dict):
        raise WireProtocol(f"{sse.event}: not an object: {sse.data[:80]!r}")
    return raw


def _offset(value: object) -> int:
    """`rewind` names an offset, or a position as in an id."""
    if isinstance(value, int):
        return value
    return _position(str(value)).offset


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except Malformed as error:
        raise WireProtocol(error.message) from error


def _start(raw: dict[str, Any], ledger: Ledger) -> Event:
    return Start(ledger.position, str(raw.get("model", "")), raw)


def _delta(raw: dict[str, Any], ledger: Ledger) -> Event:
    channel, text = str(raw.get("channel", "content")), str(raw.get("text", ""))
    if channel == "content":
        ledger.add(text)
    return Delta(ledger.position, channel, text, raw)


def _notice(raw: dict[str, Any], ledger: Ledger) -> Event:
    return Notice(ledger.position, str(raw.get("kind")), raw.get("level"), str(raw.get("reason", "")), raw)


def _done(raw: dict[str, Any], ledger: Ledger) -> Event:
    text_bytes, sha256 = int(raw.get("text_bytes", 0)), str(raw.get("sha256") or "")
    verified = ledger.verify(text_bytes, sha256)
    reason = str(raw.get("finish_reason"))
    return Done(ledger.position, reason, text_bytes, sha256, verified, raw.get("usage"), raw)


def _failed(raw: dict[str, Any], ledger: Ledger) -> Event:
    code, message = str(raw.get("code")), str(raw.get("message", ""))
    return Failed(ledger.position, code, message, bool(raw.get("retryable")))


_MAKERS = {"start": _start, "delta": _delta, "notice": _notice, "done": _done, "error": _failed}
