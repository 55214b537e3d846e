"""One SSE connection of the driver: an HTTP/1.1 request on a plain socket, and the events that come.

Small and independent of the code under test: its own chunks, its own blocks.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

HOST = "127.0.0.1"
CONNECT_S = 5.0
READ_BYTES = 65_536
STREAM_LIMIT = 8192  # of asyncio's reader: what is not read stays in the socket


class Event(NamedTuple):
    """As it came; `id` is "" where it has none."""

    name: str
    id: str
    data: str


class Answer:
    """The bytes of one answer, as they come. `status` is 0 until the head is there."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        self._raw = b""
        self._body = b""
        self._is_chunked = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete."""
        self._raw += data
        if not self.status:
            head, found, self._raw = self._raw.partition(b"\r\n\r\n")
            if not found:
                self._raw = head
                return []
            first, *lines = head.decode("latin-1").split("\r\n")
            self.status = int(first.split(" ")[1])
            self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            self._is_chunked = self.headers.get("transfer-encoding") == "chunked"
        if self._is_chunked:
            self._dechunk()
        else:
            self._body, self._raw = self._body + self._raw, b""
            self.ended = len(self._body) >= int(self.headers.get("content-length", 0))
        return self._events() if self.status == 200 else []

    @property
    def body(self) -> bytes:
        """Of an answer that is no stream."""
        return self._body

    def _dechunk(self) -> None:
        raw, at = self._raw, 0
        parts = [self._body]
        while (line := raw.find(b"\r\n", at)) >= 0:
            size = int(raw[at:line], 16)
            if len(raw) < line + 4 + size:
                break
            parts.append(raw[line + 2 : line + 2 + size])
            at = line + 4 + size
            self.ended = self.ended or not size
        self._raw, self._body = raw[at:], b"".join(parts)

    def _events(self) -> list[Event]:
        *blocks, self._body = self._body.split(b"\n\n")
        found = []
        for block in blocks:
            fields = dict(
                line.split(": ", 1) for line in block.decode().split("\n") if line[:1] not in ("", ":")
            )
            if "data" in fields:
                found.append(Event(fields.get("event", "message"), fields.get("id", ""), fields["data"]))
        return found


class Connection:
    """An open connection with its request sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answer = Answer()
        self._reader = reader
        self._writer = writer

    async def read(self, size: int = READ_BYTES, within_s: float = 10.0) -> list[Event]:
        """The events that one read brings. Raises OSError when the connection is gone or silent."""
        async with asyncio.timeout(within_s):
            data = await self._reader.read(size)
        if not data:
            if self.answer.ended:
                return []
            raise ConnectionResetError("the connection ended before the answer did")
        return self.answer.feed(data)

    async def head(self, within_s: float = 15.0) -> list[Event]:
        """Read until the head is there; events may come with it."""
        events = await self.read(within_s=within_s)
        while not self.answer.status:
            events = await self.read(within_s=within_s)
        return events

    async def whole(self, within_s: float = 15.0) -> Answer:
        """Read to the end of an answer that is no stream."""
        await self.head(within_s)
        while not self.answer.ended:
            await self.read(within_s=within_s)
        return self.answer


@asynccontextmanager
async def connected(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes = b"", receive_buffer: int = 0
) -> AsyncIterator[Connection]:
    """A connection with this request on it. Raises OSError (TimeoutError is one)."""
    sock = socket.socket()
    sock.setblocking(False)
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=STREAM_LIMIT)
    except BaseException:
        sock.close()
        raise
    try:
        given = {"Host": HOST, **headers}
        if body:
            given["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def call(port: int, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """One call on a connection of its own. Raises OSError."""
    data = b"" if body is None else json.dumps(body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if data:
        sent["Content-Type"] = "application/json"
    async with connected(port, method, path, {**sent, "Connection": "close"}, data) as connection:
        return await connection.whole()
