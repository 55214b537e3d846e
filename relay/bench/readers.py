"""One SSE reader on a raw socket, against any server: what it asks for, and the moves it is capable of.

`relay.bench.kinds` makes the good and the bad ones of these. A reader is one task and at most one socket,
and buffers nothing but one event.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

from relay.bench import sockets
from relay.bench.reception import Ended, OnEvent, Outcome, Reception
from relay.errors import InvalidValue

_READ_BYTES = 64 * 1024
_CONNECT_WITHIN_S = 10.0

Ack = Callable[[str, int], Awaitable[None]]


class Kind(StrEnum):
    """What a reader is like."""

    FAST = "fast"  # reads whatever is there
    STALLED = "stalled"  # reads a little, then nothing
    DRIPPING = "dripping"  # reads a few bytes at a time, evenly
    FLAPPING = "flapping"  # reads for a while, then does not, and so on
    HALF_CLOSED = "half-closed"  # closes its sending side after the request, and reads on
    VANISHED = "vanished"  # is gone without FIN or RST, as behind a pulled cable
    RST = "rst"  # resets the connection in the middle of an event
    SLOW_PROCESSOR = "slow-processor"  # receives at once, deals with it slowly, and says what it has done


@dataclass(frozen=True, slots=True)
class Habits:
    """The parameters of the kinds. Bytes of the socket where nothing else is said, and seconds.

    `absent_s` is for how long a stalled, vanished or resetting reader stays away before it reads on, from
    its last id where it has lost the connection; None: for good. Where `called_back` is given it stays
    away until that returns instead.
    """

    receive_buffer: int = 4096  # SO_RCVBUF; a fast reader has the kernel's own
    maxseg: int | None = 1448
    after_events: int = 1  # well-behaved until it has seen so many
    absent_s: float | None = None
    called_back: Callable[[], Awaitable[object]] | None = None
    drip_bytes_per_s: float = 1024.0
    drip_every_s: float = 0.1
    flap_s: float = 1.0
    process_bytes_per_s: float = 100.0  # of the response
    process_every_s: float = 0.1
    window: int = 2048  # of the slow processor: unprocessed bytes it takes


@dataclass(frozen=True, slots=True)
class Target:
    """What is read: one HTTP request, and how to acknowledge, where the server is a relay with a window."""

    host: str
    port: int
    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    ack: Ack | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        url: str,
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        ack: Ack | None = None,
    ) -> Self:
        """From a URL. Raises InvalidValue for anything but http://HOST[:PORT][/PATH]."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise InvalidValue(
                f"not an address to read: {url[:100]!r}; expected http://HOST:PORT/PATH", param="url"
            )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, parts.port or 80, path, method, tuple((headers or {}).items()), body, ack)

    def request(self, last_id: str | None) -> bytes:
        """The request's bytes; `last_id` makes it go on behind that event."""
        given = {"Host": f"{self.host}:{self.port}", "Accept": "text/event-stream", **dict(self.headers)}
        if last_id is not None:
            given["Last-Event-ID"] = last_id
        if self.body:
            given.setdefault("Content-Type", "application/json")
            given["Content-Length"] = str(len(self.body))
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in given.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


class Reader:
    """One reader's connection, one after the other. Its methods are what a kind is made of."""

    def __init__(
        self,
        target: Target,
        habits: Habits,
        *,
        outcome: Outcome | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.target = target
        self.habits = habits
        self.outcome = outcome or Outcome()
        self.reception = Reception(self.outcome, on_event)
        self.receive_buffer: int | None = habits.receive_buffer
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._is_gone = False  # for its peer

    async def connect(self) -> None:
        """Connect and ask, behind the last id seen. Raises OSError."""
        self.close()
        self.reception.begin()
        target = self.target
        if not self.outcome.connections:
            self.outcome.asked_at = self._loop.time()
        family, _, _, _, address = (
            await self._loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        )[0]
        self._socket = sockets.unconnected(family, self.receive_buffer, self.habits.maxseg)
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            await self._loop.sock_connect(self._socket, address)
            await self._loop.sock_sendall(self._socket, target.request(self.reception.last_id))
        self.outcome.connections += 1

    async def read(self, size: int = _READ_BYTES) -> bool:
        """Read once, at most `size` bytes. False when there is nothing more to read.

        Raises OSError for a reset and WireProtocol for what is no event stream.
        """
        reception = self.reception
        if reception.is_over:
            return False
        data = await self._loop.sock_recv(self.socket, size)
        if not data:
            if self.outcome.ended is not Ended.TERMINAL:
                self.outcome.ended = Ended.CLOSED
            return False
        reception.feed(data, self._loop.time())
        if reception.body_ended and self.outcome.ended is not Ended.TERMINAL:
            self.outcome.ended = Ended.CLOSED
        return not reception.is_over

    async def until(self, reached: Callable[[], bool], size: int = _READ_BYTES) -> bool:
        """Read until `reached`; False when the response ended first."""
        while not reached():
            if not await self.read(size):
                return False
        return True

    async def begun(self) -> bool:
        """Read the first events, as well as anybody. In small bites, so that not everything is read."""
        return await self.until(lambda: self.outcome.events >= self.habits.after_events, 512)

    async def rest(self) -> None:
        """Read to the end, as fast as may be."""
        while await self.read():
            pass

    @property
    def socket(self) -> socket.socket:
        """The connection that there is. Raises InvalidValue when there is none."""
        if self._socket is None:
            raise InvalidValue("this reader is not connected")
        return self._socket

    def close(self) -> None:
        """Hang up, if there is a connection."""
        if self._socket is None:
            return
        if self._is_gone:  # a FIN would be repeated for minutes: its acknowledgement is not heard
            self.reset()
            return
        self._socket.close()
        self._socket = None

    def reset(self) -> None:
        """Hang up with a RST."""
        sockets.reset(self.socket)
        self._socket, self._is_gone = None, False

    def vanish(self) -> None:
        """Be gone without a word: nothing is received, acknowledged or said from now on."""
        sockets.vanish(self.socket)
        self._is_gone = True

    def look(self) -> None:
        """Note, without reading, what has become of the connection."""
        if self._socket is None or self.outcome.ended is not Ended.OPEN:
            return
        self.outcome.ended = Ended(sockets.ending(self._socket))
        self.outcome.unread_bytes = sockets.unread(self._socket)
