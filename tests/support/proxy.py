"""A TCP proxy before a server, that does to its connections what a network may do.

    async with proxy(url) as line:
        ...connect to line.url...
        line.lose_reply(b"EVALSHA")     # the next command with these bytes runs, and nobody hears of it
        line.delay_s = 0.2              # everything takes so much longer, each way
        line.freeze()                   # a partition: nothing passes, nothing is closed, until `thaw`
        line.half_open("client")        # the client hears that it ended, the server does not
        line.cut_after(700)             # in the middle of a frame

Losses look for their marker in each piece of data as it comes, so it must leave in one write. A slow end
slows the other: at most about _HELD_BYTES of a direction are held here, beside the sockets' own buffers.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

_HELD_BYTES = 65_536  # of one direction; past it the sender's socket is not read
_HOST = "127.0.0.1"
_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger: on, no time


class _End(asyncio.Protocol):
    """One socket of a connection. What it receives is its peer's, after what the line does to it."""

    def __init__(self, line: "Proxy", *, is_client: bool) -> None:
        self._line = line
        self.is_client = is_client
        self.transport: asyncio.Transport | None = None
        self.peer: _End | None = None
        self.has_ended = False  # it sends no more
        self.is_doomed = False  # its next data is lost, and the connection cut
        self._held: deque[tuple[float, bytes]] = deque()  # (not before, data); b"" is the end of the file
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._is_full = False  # this end's own socket does not take more

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_HELD_BYTES)
        if self.is_client:
            self._line.accepted(self)
        self._line.ends.add(self)

    def data_received(self, data: bytes) -> None:
        """Hand it on, or hold it, or lose it."""
        if self._line.judge(self, data):
            self._hold(data)

    def eof_received(self) -> bool:
        """The end travels behind the data; the other direction goes on."""
        self.has_ended = True
        self._hold(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Reset, or closed after its data: the peer sees the same."""
        self._line.ends.discard(self)
        self.transport = None
        if self.peer is not None and exc is not None:
            self.peer.abort()
        elif self.peer is not None and not self.has_ended:
            self.has_ended = True
            self._hold(b"")

    def pause_writing(self) -> None:
        """This socket is full: the peer is not read."""
        self._is_full = True
        self.flow()

    def resume_writing(self) -> None:
        """There is room again."""
        self._is_full = False
        self.flow()

    # --- inside

    def abort(self) -> None:
        """Reset it, and forget what is held."""
        self._held.clear()
        self.peer = None
        if self.transport is not None:
            # Without a linger of no time it would be a plain end, that looks like an orderly one.
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE
            )
            self.transport.abort()

    def leave(self) -> None:
        """Lose the peer without a word: this end stays open, unread."""
        self.peer = None
        self._pause(wanted=True)

    def _hold(self, data: bytes) -> None:
        self._held.append((self._line.now() + self._line.delay_s, data))
        self._held_bytes += len(data)
        self.release()

    def release(self) -> None:
        """Hand on what is due; look again when more will be."""
        peer = self.peer
        while self._held and not self._line.is_frozen:
            due, data = self._held[0]
            if peer is None or peer.transport is None:
                break
            if due > self._line.now():
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_at(due, self._tick)
                break
            self._held.popleft()
            self._held_bytes -= len(data)
            if data:
                peer.transport.write(data)
            elif peer.has_ended or self.transport is None:
                peer.transport.close()  # after what was written
                if self.transport is not None:
                    self.transport.close()
            else:
                peer.transport.write_eof()
        self._pause(wanted=self._held_bytes > _HELD_BYTES or (peer is not None and peer._is_full))

    def _tick(self) -> None:
        self._timer = None
        self.release()

    def flow(self) -> None:
        """This end's room changed: look whether the peer may be read."""
        if self.peer is not None:
            self.peer.release()

    def _pause(self, *, wanted: bool) -> None:
        if wanted != self._is_paused and self.transport is not None and not self.transport.is_closing():
            self._is_paused = wanted
            (self.transport.pause_reading if wanted else self.transport.resume_reading)()


class Proxy:
    """A listener on 127.0.0.1 before a server. Plain TCP alone.

    `target` is where new connections go, and may be changed. `lost` counts what was lost as asked. While
    `turns_away` is true, new connections are reset at once.
    """

    def __init__(self, host: str, port: int, *, buffer_bytes: int | None = None) -> None:
        self.target = (host, port)
        self.route: Callable[[], tuple[str, int]] = lambda: self.target  # may be set: a balancer
        self.url = ""
        self.port = 0
        self.lost = 0
        self.turns_away = False
        self.delay_s = 0.0  # of what comes from now on, each way
        self.ends: set[_End] = set()
        self._buffer_bytes = buffer_bytes
        self._command: bytes | None = None
        self._reply: bytes | None = None
        self._cut_after: int | None = None
        self.is_frozen = False  # whether what its ends receive must wait
        self._connecting: set[asyncio.Task[None]] = set()

    # --- what a test may do

    def lose_command(self, marker: bytes) -> None:
        """Cut the connection instead of passing the next command with these bytes on: it never runs."""
        self._command = marker

    def lose_reply(self, marker: bytes) -> None:
        """Pass the next command with these bytes on, and cut the connection when the server answers."""
        self._reply = marker

    def cut_after(self, size: int) -> None:
        """Pass `size` more bytes of replies, of all connections together, and reset that connection."""
        self._cut_after = size

    def freeze(self) -> None:
        """Nothing passes, either way, and nothing is closed: also of connections made meanwhile."""
        self.is_frozen = True

    def thaw(self) -> None:
        """What was held arrives, as after a partition shorter than TCP's patience."""
        self.is_frozen = False
        self._move()

    def cut(self) -> None:
        """Reset every connection, those that were left half open too."""
        for end in tuple(self.ends):
            end.abort()

    def half_open(self, told: str) -> int:
        """End every connection for one side, "client" or "server", and leave the other; how many."""
        left = [end for end in self.ends if end.peer is not None and end.is_client == (told == "client")]
        for end in left:
            peer = end.peer
            if peer is not None:
                peer.leave()
            end.abort()
        return len(left)

    def heal(self) -> None:
        """Everything is as at the start; half-open connections are reset."""
        self.delay_s = 0.0
        self.turns_away = False
        self._command = self._reply = self._cut_after = None
        self.thaw()
        for end in tuple(self.ends):
            if end.peer is None and not end.is_client:
                end.abort()

    # --- what the ends ask

    @staticmethod
    def now() -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    def judge(self, end: _End, data: bytes) -> bool:
        """Whether data goes on; False when it is lost and the connection with it."""
        if end.is_client:
            if self._command is not None and self._command in data:
                self._command = None
                return self._lose(end)
            if self._reply is not None and self._reply in data:
                self._reply = None
                if end.peer is not None:
                    end.peer.is_doomed = True
            return True
        if end.is_doomed:
            return self._lose(end)
        if self._cut_after is not None:
            self._cut_after -= len(data)
            if self._cut_after < 0:
                kept = data[: self._cut_after]
                self._cut_after = None
                if end.peer is not None and end.peer.transport is not None:
                    end.peer.transport.write(kept)
                return self._lose(end, is_clean=True)
        return True

    def _lose(self, end: _End, *, is_clean: bool = False) -> bool:
        self.lost += 1
        peer = end.peer
        end.abort()
        if peer is not None and is_clean and peer.transport is not None:
            peer.transport.close()
        elif peer is not None:
            peer.abort()
        return False

    def _move(self) -> None:
        for end in tuple(self.ends):
            end.release()

    def accepted(self, end: _End) -> None:
        """A client is here: connect it."""
        if self.turns_away:
            end.abort()
            return
        task = asyncio.get_running_loop().create_task(self._connect(end))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: _End) -> None:
        loop = asyncio.get_running_loop()
        server = _End(self, is_client=False)
        sock = socket.socket()
        sock.setblocking(False)
        if self._buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        try:
            await loop.sock_connect(sock, self.route())
            await loop.create_connection(lambda: server, sock=sock)
        except OSError:
            sock.close()
            client.abort()
            return
        if client.transport is None:
            server.abort()
            return
        client.peer, server.peer = server, client
        client.release()
        server.release()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Proxy"]:
        """Serve for as long as the block lasts; then its connections are reset."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _End(self, is_client=True), _HOST, 0)
        if self._buffer_bytes is not None:
            for listener in server.sockets:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tuple(self._connecting):
                task.cancel()
            await asyncio.gather(*self._connecting, return_exceptions=True)
            self.heal()
            self.cut()
            while self.ends:  # noqa: ASYNC110 the transports tell their protocols on the next turn
                await asyncio.sleep(0)
            await server.wait_closed()


@asynccontextmanager
async def proxy(url: str, *, buffer_bytes: int | None = None) -> AsyncIterator[Proxy]:
    """A proxy before the server at `url`. `buffer_bytes`: small socket buffers, so that slowness shows."""
    parts = urlsplit(url)
    async with Proxy(
        parts.hostname or _HOST, parts.port or 6379, buffer_bytes=buffer_bytes
    ).listening() as line:
        line.url = parts._replace(netloc=f"{_HOST}:{line.port}").geturl()
        yield line
