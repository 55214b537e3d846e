"""A server that speaks just enough RESP to misbehave: for what no real server can be made to do.

What it says where it behaves (the greeting, PING, ECHO) is held against a real server in test_wire.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import hiredis

Command = list[bytes]
Answer = Callable[[Command], bytes | None]

_MORE = object()


def bulk(payload: bytes) -> bytes:
    """A bulk string as it goes on the wire."""
    return b"$%d\r\n%s\r\n" % (len(payload), payload)


def polite(command: Command) -> bytes | None:
    """What a server in a good mood says to HELLO, SELECT, PING and ECHO; nothing at all to the rest."""
    word = command[0].upper()
    if word == b"HELLO":
        return b"%1\r\n$5\r\nproto\r\n:3\r\n"
    if word == b"PING":
        return b"+PONG\r\n"
    if word == b"SELECT":
        return b"+OK\r\n"
    return bulk(command[1]) if word == b"ECHO" else None


def mute(_command: Command) -> bytes | None:
    """Takes every command and never answers."""
    return None


class Connection(asyncio.Protocol):
    """One client: parses its commands, and writes the answers whole or a byte a turn of the loop."""

    def __init__(self, server: "FakeRedis") -> None:
        self._server = server
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._dripping = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it, or turn it away."""
        self.transport = cast("asyncio.Transport", transport)
        self._server.accepted_at_s.append(asyncio.get_running_loop().time())
        if self._server.turns_away:
            self.transport.abort()
            return
        self._server.connections.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio names it
        """Forget it."""
        self.transport = None
        if self in self._server.connections:
            self._server.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        """Answer every whole command."""
        self._reader.feed(data)
        while (command := self._reader.gets()) is not _MORE:
            self._server.commands.append(command)
            reply = self._server.answer(command)
            if reply is not None:
                self.say(reply)

    def say(self, data: bytes) -> None:
        """Send bytes, asked for or not."""
        if self.transport is None:
            return
        if not self._server.drips:
            self.transport.write(data)
            return
        idle = not self._dripping
        self._dripping += data
        if idle:
            asyncio.get_running_loop().call_soon(self._drip)

    def _drip(self) -> None:
        if self.transport is None or not self._dripping:
            return
        self.transport.write(bytes(self._dripping[:1]))
        del self._dripping[:1]
        asyncio.get_running_loop().call_soon(self._drip)


class FakeRedis:
    """A listener on 127.0.0.1. `answer` may be changed while it runs."""

    def __init__(self, answer: Answer, *, drips: bool = False) -> None:
        self.answer = answer
        self.drips = drips
        self.turns_away = False  # new connections are reset at once
        self.connections: list[Connection] = []
        self.accepted_at_s: list[float] = []  # loop time of every connection, the refused ones too
        self.commands: list[Command] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}/0"


@asynccontextmanager
async def fake_redis(answer: Answer = polite, *, drips: bool = False) -> AsyncIterator[FakeRedis]:
    """A fake server for as long as the block lasts; then its connections are reset."""
    fake = FakeRedis(answer, drips=drips)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(fake), "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        for connection in list(fake.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await server.wait_closed()
        await asyncio.sleep(0)  # the transports tell their protocols on the next turn
