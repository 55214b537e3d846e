"""An upstream that sends as fast as it is read: `python -m relay.bench.flood`, a process of its own.

It speaks as much of an OpenAI-compatible API as a stream needs. Every answer is the same numbered words,
so that any part of one can be checked, and ends after `BODY_BYTES` of events. `GET /sent` tells how many
bytes of each answer its kernel has taken: what of them is still in a socket, /proc/net/tcp tells.
"""

import asyncio
import http.client
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import orjson

from relay.bench.child import child, serve

BODY_BYTES = 50 * 1024 * 1024
WORD_BYTES = 8
_EVENT = (
    b'data: {"id":"chatcmpl-flood","object":"chat.completion.chunk","created":0,"model":"flood",'
    b'"choices":[{"index":0,"delta":{"content":"%07d "},"finish_reason":null}]}\n\n'
)
EVENT_BYTES = len(_EVENT % 0)
TOKENS = BODY_BYTES // EVENT_BYTES
_END = (
    b'data: {"id":"chatcmpl-flood","object":"chat.completion.chunk","created":0,"model":"flood",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
_BLOCK = 256  # events that are written as one chunk
_CHUNK_LINES = len(b"%x\r\n\r\n" % (_BLOCK * EVENT_BYTES))
_WRITE_BUFFER_BYTES = 64 * 1024  # beside a block, what the process itself holds of an answer that is not read
_ANSWERS_MAX = 4096  # told by /sent; one run makes a few dozen
_REQUEST_MAX_BYTES = 1024 * 1024
_READY_WITHIN_S = 15.0


def text(start: int, end: int) -> bytes:
    """The bytes of the answer from `start` to `end`."""
    first = start // WORD_BYTES
    words = b"".join(b"%07d " % word for word in range(first, -(-end // WORD_BYTES)))
    return words[start - first * WORD_BYTES : end - first * WORD_BYTES]


def text_of(body_bytes: int) -> int:
    """How many bytes of text are in so many bytes of an answer, its head and chunk lines included."""
    blocks, rest = divmod(max(0, body_bytes - len(_HEAD)), _BLOCK * EVENT_BYTES + _CHUNK_LINES)
    return min(TOKENS, blocks * _BLOCK + rest // EVENT_BYTES) * WORD_BYTES


class Answer(NamedTuple):
    """One answer: the port of the client that reads it, and the bytes that the kernel has taken of it."""

    peer: int
    sent: int
    is_open: bool


class Upstream:
    """Where an upstream is, and what it says of its answers."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    @property
    def base_url(self) -> str:
        """For a setting."""
        return f"http://127.0.0.1:{self.port}/v1"

    def answers(self) -> list[Answer]:
        """All of them, oldest first."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/sent")
            return [Answer(*row) for row in orjson.loads(connection.getresponse().read())]
        finally:
            connection.close()


@contextmanager
def flooding() -> Iterator[Upstream]:
    """An upstream for as long as the block lasts. Raises ServerUnfit when it does not start."""
    with child("relay.bench.flood") as process:
        yield Upstream(*process)


class _Connection(asyncio.Protocol):
    """One connection, one answer. Blocks are made as the transport's buffer empties, and not before."""

    def __init__(self, answers: "list[_Connection]") -> None:
        self._answers = answers
        self._request = b""
        self._written = self._tokens = 0
        self._transport: asyncio.Transport | None = None
        self._is_full = self._began = False
        self._peer = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._peer = transport.get_extra_info("peername")[1]

    def data_received(self, data: bytes) -> None:
        if self._began or self._transport is None:
            return
        self._request += data
        head, found, body = self._request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if len(self._request) > _REQUEST_MAX_BYTES:
            self._transport.abort()
        elif found and len(body) >= (int(length[1]) if length else 0):
            self._began = True
            if head.startswith(b"GET /sent "):
                self._tell()
            else:
                self._answers.append(self)
                del self._answers[:-_ANSWERS_MAX]
                self._write(_HEAD)
                self._pour()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._pour()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = None

    def told(self) -> Answer:
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return Answer(self._peer, self._written - unsent, self._transport is not None)

    def _tell(self) -> None:
        body = orjson.dumps([list(connection.told()) for connection in self._answers])
        self._write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
        )
        if self._transport is not None:
            self._transport.close()

    def _pour(self) -> None:
        """Write until the buffer is full, one block a turn of the loop."""
        if self._is_full or self._transport is None or not self._began:
            return
        first, last = self._tokens, min(self._tokens + _BLOCK, TOKENS)
        if first == last:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_END), _END))
            self._transport.close()
            return
        block = b"".join([_EVENT % number for number in range(first, last)])
        self._tokens = last
        self._write(b"%x\r\n%b\r\n" % (len(block), block))
        if not self._is_full:
            asyncio.get_running_loop().call_soon(self._pour)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._written += len(data)
            self._transport.write(data)


async def _start() -> asyncio.Server:
    answers: list[_Connection] = []
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0, backlog=1024)


if __name__ == "__main__":
    serve(_start())
