"""One response on a connection of many: its own sink and its own words, on the one socket.

A connection is one stream of bytes, so what its kernel has acknowledged counts for every response in it: the
marks of each ledger are of the shared count, and only the credit is each one's own. What is written for one
response is bounded by that, so one that is not taken (its window is full) writes nothing and holds nobody.

    id: 143-17,88-52,rs_…:55-3      positions: of `?streams=` in its order, then, by name, of those added

The id of every event is where *all* of them stand when it is written, so that the last one is all that a
client needs to go on: an EventSource sends it back by itself, to the address that it has. "-" stands for one
that was removed.
"""

from collections.abc import Callable, Iterable
from typing import Any

from api import sse
from api.condition import TcpTimes
from api.sink import Sink
from relay.errors import Malformed, RelayError
from relay.events import Record
from relay.position import START, Position

_REMOVED = "-"


class Board:
    """Where each response of a connection stands, as its events' id."""

    def __init__(self, fixed: Iterable[str]) -> None:
        self._fixed = dict.fromkeys(fixed, b"0-0")  # of the address: each keeps its place
        self._added: dict[str, bytes] = {}

    def move(self, name: str, position: bytes) -> None:
        """A response stands there now."""
        if name in self._fixed:
            self._fixed[name] = position
        else:
            self._added[name] = b"%b:%b" % (name.encode(), position)

    def leave(self, name: str, *, removed: bool) -> None:
        """It is not served any more. One that has ended keeps its position in the address's order."""
        self._added.pop(name, None)
        if removed and name in self._fixed:
            self._fixed[name] = _REMOVED.encode()

    def __bytes__(self) -> bytes:
        return b",".join((*self._fixed.values(), *self._added.values()))


def read_id(text: str, fixed: list[str]) -> dict[str, Position]:
    """What such an id says: the responses to serve and from where. Raises Malformed."""
    parts = text.split(",")
    if len(parts) < len(fixed):
        raise Malformed(
            f"not the id of an event of this connection: {len(parts)} positions, not {len(fixed)}"
        )
    found = {name: Position.parse(part) for name, part in zip(fixed, parts, strict=False) if part != _REMOVED}
    for part in parts[len(fixed) :]:
        name, _, position = part.partition(":")
        found[name] = Position.parse(position)
    return found


class Tagged:
    """The native events, each with its response and with an id that tells of all."""

    def __init__(self, board: Board, name: str) -> None:
        self._board = board
        self._name = name
        self._tag = b'"stream":"%b"' % name.encode()

    def frame(self, record: Record, end: int, epoch: int) -> bytes:
        """A record, which moves its response on the board. Frames are written in the turn that makes them."""
        self._board.move(self._name, b"%d-%d" % (end, epoch))
        return sse.tagged(record, end, epoch, self._tag, bytes(self._board))

    def private(self, name: str, data: dict[str, Any]) -> bytes:
        """About this reader of this response; a reconnect is the connection's to say, once."""
        return b"" if name == "reconnect" else sse.private(name, {"stream": self._name, **data})


class Lane:
    """A sink on a shared connection. One that is let go of writes no more, and the connection stays."""

    def __init__(
        self, sink: Sink, name: str, form: Tagged, position: Position | None, error: RelayError | None = None
    ) -> None:
        self.name = name
        self.error = error  # it cannot be read: that is all there is to say of it
        self.form = form
        self.position = position if position != START else None
        self._sink = sink
        self._on_lost: Callable[[], None] | None = None
        self.is_lost = False

    @property
    def written(self) -> int:
        """Of the connection."""
        return self._sink.written

    def write(self, data: bytes) -> None:
        """One chunk; not a keep-alive, which is said once for all."""
        if not self.is_lost and data is not sse.KEEPALIVE:
            self._sink.write(data)

    def outstanding(self) -> int:
        """Of the connection: bytes arrive in order, whoever's they are."""
        return self._sink.outstanding()

    def times(self) -> TcpTimes | None:
        """Of the connection."""
        return self._sink.times()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back once the connection is gone, or this response is removed from it."""
        self._on_lost = callback
        if self.is_lost:
            callback()

    def lose(self) -> None:
        """Let go of it. Idempotent."""
        self.is_lost = True
        if self._on_lost is not None:
            self._on_lost()
