"""A TCP proxy before a server that loses what a test wants lost: a command, or the reply to one.

    async with proxy(url) as line:
        ...connect to line.url...
        line.lose_reply(b"EVALSHA")     # the next command with these bytes runs, and nobody hears of it

It looks for the marker in each piece of data as it comes, so the marker must leave in one write.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

_CHUNK = 65_536


class Proxy:
    """A listener on 127.0.0.1 before a server. Plain TCP alone.

    `lost` counts what was lost as asked. While `turns_away` is true, new connections are reset at once.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.url = ""
        self.lost = 0
        self.turns_away = False
        self._command: bytes | None = None
        self._reply: bytes | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def lose_command(self, marker: bytes) -> None:
        """Cut the connection instead of passing the next command with these bytes on: it never runs."""
        self._command = marker

    def lose_reply(self, marker: bytes) -> None:
        """Pass the next command with these bytes on, and cut the connection when the server answers."""
        self._reply = marker

    def hold_replies(self) -> None:
        """Nothing of what the server says arrives, until `release`."""
        self._flowing.clear()

    def release(self) -> None:
        """What was held arrives."""
        self._flowing.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        if self.turns_away:
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, upstream_writer}
        self._writers |= ends
        doomed = asyncio.Event()
        directions = [
            asyncio.ensure_future(self._commands(reader, upstream_writer, doomed)),
            asyncio.ensure_future(self._replies(upstream_reader, writer, doomed)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            for end in ends:
                end.transport.abort()
            self._writers -= ends
            await asyncio.gather(*directions, return_exceptions=True)

    async def _commands(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._command is not None and self._command in data:
                    self._command = None
                    self.lost += 1
                    return
                if self._reply is not None and self._reply in data:
                    self._reply = None
                    doomed.set()
                writer.write(data)
                await writer.drain()

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if doomed.is_set():
                    self.lost += 1
                    return
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server at `url` for as long as the block lasts; then its connections are reset."""
    parts = urlsplit(url)
    line = Proxy(parts.hostname or "127.0.0.1", parts.port or 6379)
    tasks: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(line.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    line.url = parts._replace(netloc=f"127.0.0.1:{port}").geturl()
    try:
        yield line
    finally:
        server.close()
        line.release()
        line.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # the transports tell their protocols on the next turn
