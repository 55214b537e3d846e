"""Where a consumer's bytes go: to the client's socket; held until its answer may begin; or nowhere."""

from collections.abc import Callable
from typing import Protocol

from api.condition import TcpTimes


class Sink(Protocol):
    """What a consumer needs of a connection; see `api.protocol.ClientSocket`."""

    @property
    def written(self) -> int:
        """Bytes so far, the framing of chunks included."""
        ...

    def write(self, data: bytes) -> None:
        """Send one chunk."""
        ...

    def outstanding(self) -> int:
        """Bytes that the client's kernel has not acknowledged."""
        ...

    def times(self) -> TcpTimes | None:
        """For how long bytes have waited."""
        ...

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back once the connection is gone."""
        ...


class Framing(Sink, Protocol):
    """One that tells what a write will count for."""

    def framed(self, size: int) -> int:
        """The bytes that `written` grows by when so many are written."""
        ...


class Held:
    """Keeps what is written until `release`: while it is open whether the answer is a stream or an error.

    It holds what a credit lets out, for nothing of it is acknowledged.
    """

    def __init__(self, sink: Framing) -> None:
        self._sink = sink
        self._pieces: list[bytes] | None = []
        self._held = 0

    @property
    def written(self) -> int:
        """As if it had been written."""
        return self._sink.written + self._held

    def write(self, data: bytes) -> None:
        """Keep it, or pass it on."""
        if self._pieces is None:
            self._sink.write(data)
        else:
            self._pieces.append(data)
            self._held += self._sink.framed(len(data))

    def outstanding(self) -> int:
        """What is kept is on its way to nobody."""
        return self._sink.outstanding() + self._held

    def times(self) -> TcpTimes | None:
        """Those of the connection."""
        return self._sink.times()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Of the connection."""
        self._sink.on_lost(callback)

    def release(self) -> None:
        """Write what was kept, piece by piece: its marks stay true. Idempotent."""
        pieces, self._pieces, self._held = self._pieces or [], None, 0
        for piece in pieces:
            self._sink.write(piece)


class Nowhere:
    """Takes everything at once: for a client that is answered with the whole, at the end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.written = 0

    def write(self, data: bytes) -> None:
        """Count it."""
        self.written += len(data)

    def outstanding(self) -> int:
        """Nothing: it has been taken."""
        return 0

    def times(self) -> TcpTimes | None:
        """Nothing waits."""
        return None

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Of the client's connection: who has gone away reads no more."""
        self._sink.on_lost(callback)
