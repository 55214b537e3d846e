"""The two readers of the demo: raw sockets, so that each read and each buffer is in plain sight.

The slow one has a receive buffer of a few kilobytes, set before it connects because the TCP window is
agreed on then, and takes little at a time: what it has not taken fills its kernel, then stops the relay.
"""

import asyncio
import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from relay.bench.frames import Frames, fields, split_head
from relay.errors import Unavailable

_SILENCE_S = 20.0  # the relay sends a comment every 15 s


@dataclass
class Track:
    """What one reader has so far. Positions and lags are bytes of the response."""

    name: str
    habit: str  # how it reads, in words
    receive_buffer: int | None = None
    position: int = 0
    confirmed: int = 0  # what the relay knows to be in the reader's kernel
    state: str = "-"  # the relay's word for it
    lag: int = 0
    lag_max: int = 0
    lags: list[int] = field(default_factory=list)  # one for each frame drawn, so at most some hundreds
    frames: int = 0
    wire_bytes: int = 0
    text: list[str] = field(default_factory=list)
    done: dict[str, object] | None = None
    failed: str | None = None
    took_s: float = 0.0

    @property
    def content(self) -> str:
        """The text so far."""
        return "".join(self.text)

    @property
    def digest(self) -> str:
        """SHA-256 of the text so far."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def is_over(self) -> bool:
        """Whether it reads no more."""
        return self.done is not None or self.failed is not None

    @property
    def is_exact(self) -> bool:
        """Whether it has the text that was made, by the digest that `done` gave."""
        return self.done is not None and self.done.get("sha256") == self.digest


Pace = Callable[[], tuple[int, float]]  # how many bytes the next read takes at most, and the pause after it


async def read(track: Track, *, port: int, path: str, pace: Pace) -> None:
    """Read the response to its end. What goes wrong is noted in the track, not raised: the other reads on."""
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        if track.receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, track.receive_buffer)
        try:
            await loop.sock_connect(connection, ("127.0.0.1", port))
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n"
            await loop.sock_sendall(connection, request.encode())
            await _take(track, connection, pace)
        except (OSError, TimeoutError, Unavailable) as error:
            track.failed = str(error) or type(error).__name__
    track.took_s = time.monotonic() - began


async def _take(track: Track, connection: socket.socket, pace: Pace) -> None:
    loop = asyncio.get_running_loop()
    head, frames = b"", Frames()
    is_open = False
    while not track.is_over:
        size, pause_s = pace()
        data = await asyncio.wait_for(loop.sock_recv(connection, size), _SILENCE_S)
        if not data:
            raise Unavailable("the connection was cut")
        track.wire_bytes += len(data)
        if not is_open:
            split = split_head(head := head + data)
            if split is None:
                continue
            if split[0].status != 200:
                raise Unavailable(f"the relay answered {split[0].status}")
            is_open, data = True, split[1]
        for frame in frames.feed(data):
            _enter(track, *fields(frame))
        if pause_s:
            await asyncio.sleep(pause_s)


def _enter(track: Track, name: bytes, ident: bytes, data: bytes) -> None:
    if not name:
        return
    track.frames += 1
    if ident:
        track.position = int(ident.partition(b"-")[0])
    if name == b"delta":
        track.text.append(orjson.loads(data).get("text", ""))
    elif name == b"done":
        track.done = orjson.loads(data)
    elif name == b"error":
        track.failed = str(orjson.loads(data).get("message"))
