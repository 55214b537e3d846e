"""A fake OpenAI-compatible upstream on a real loopback socket, driven by scripts.

    async with Upstream(answer("Hello", " world")) as upstream:
        ...point a source at upstream.base_url...
        call = await upstream.call(0)          # what it asked for
        await call.disconnected.wait()         # and that it hung up

A script is an async function of a `Call`: it writes whatever it likes, whenever it likes, byte by byte if
it likes, and the connection is closed when it returns. Ready-made ones: `answer`, `refuse`, `silence`,
`reset`, `flood`, `paced`. The n-th connection runs the n-th script, later ones the last.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

SEND_BUFFER_BYTES = 64 * 1024
STALL_S = 0.2  # a write that the client has not made room for in this time has stalled


@dataclass
class Call:
    """One request, and the connection to answer it on."""

    method: str
    path: str
    headers: dict[str, str]  # lower-case names
    body: bytes
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)
    written: int = 0  # bytes that the kernel took
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)  # the client is gone
    stalled: asyncio.Event = field(default_factory=asyncio.Event)  # the client does not read
    go: asyncio.Event = field(default_factory=asyncio.Event)  # set by the test, for scripts that wait

    @property
    def json(self) -> Any:
        """The request's body."""
        return json.loads(self.body)

    async def send(self, data: bytes, *, cut_every: int | None = None) -> None:
        """Write raw bytes; in pieces of `cut_every`, each in a segment of its own.

        Returns when the kernel has them all. Sets `stalled` while the client makes no room.
        """
        step = cut_every or len(data) or 1
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self.writer.write(piece)
            await asyncio.sleep(0)  # uvloop writes at the end of its turn
            if self.writer.transport.is_closing():
                raise ConnectionResetError("the client is gone")
            if self.writer.transport.get_write_buffer_size():
                await self._drained()
            self.written += len(piece)

    async def _drained(self) -> None:
        timer = asyncio.get_running_loop().call_later(STALL_S, self.stalled.set)
        try:
            await self.writer.drain()
        finally:
            timer.cancel()
        self.stalled.clear()

    async def head(
        self, status: int = 200, headers: Mapping[str, str] | None = None, *, chunked: bool = True
    ) -> None:
        """Status line and headers, of an event stream unless `headers` says otherwise."""
        given = {"content-type": "text/event-stream", **(headers or {})}
        if chunked:
            given["transfer-encoding"] = "chunked"
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in given.items())]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def body_part(self, data: bytes, *, cut_every: int | None = None) -> None:
        """One HTTP chunk, framing included."""
        await self.send(http_chunk(data), cut_every=cut_every)

    async def event(self, data: Any, *, cut_every: int | None = None) -> None:
        """One SSE event in an HTTP chunk of its own."""
        await self.body_part(sse(data), cut_every=cut_every)

    async def end(self) -> None:
        """The end of a chunked body."""
        await self.send(b"0\r\n\r\n")

    async def hold(self) -> None:
        """Keep the connection open and say nothing until the client is gone."""
        await self.disconnected.wait()

    def reset(self) -> None:
        """Cut the connection with a RST: what the client has not read may be lost."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger {1, 0}
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


class Upstream:
    """The server. Use as an async context manager; everything it started is gone when it closes."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[Call] = []
        self.scripts: Sequence[Script] = scripts or (answer("Hello", " world"),)
        self.port = 0
        self._tls = tls
        self._arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def base_url(self) -> str:
        """What a model's `base_url` is to be."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/v1"

    async def call(self, index: int) -> Call:
        """The n-th request, from 0, once it has come."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.calls) > index)
        return self.calls[index]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        # Inherited by accepted sockets: what a client does not read must show soon.
        self._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.transport.set_write_buffer_limits(high=0)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.transport.abort() if self._tls else writer.close()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.split("\r\n")[:-2]
        method, path, _ = request.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call = Call(method, path, headers, body, reader, writer)
        script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        async with self._arrived:
            self.calls.append(call)
            self._arrived.notify_all()
        watch = asyncio.ensure_future(_watch(call))
        try:
            await script(call)
        except OSError:
            call.disconnected.set()  # a write noticed before the watch did
        finally:
            watch.cancel()


async def _watch(call: Call) -> None:
    """Notice that the client is gone, whatever the script is doing."""
    try:
        while await call.reader.read(65_536):
            pass
    except OSError:
        pass
    call.disconnected.set()


# What goes over the wire


def chunk(text: str | None = None, *, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chat completion chunk with one choice."""
    if text is not None:
        delta["content"] = text
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "upstream-model",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """The chunk that `include_usage` asks for: no choices."""
    told = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    return {**chunk(), "choices": [], "usage": told}


def sse(data: Any) -> bytes:
    """One event: a text as it is, everything else as JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def http_chunk(data: bytes) -> bytes:
    """One chunk of a chunked body (RFC 9112 section 7.1)."""
    return b"%x\r\n%s\r\n" % (len(data), data)


# Ready-made scripts


def answer(
    *parts: str | dict[str, Any],
    finish: str | None = "stop",
    done: bool = True,
    cut_every: int | None = None,
    at_once: bool = False,
) -> Script:
    """Text parts and chunks, the finish reason, the usage, `[DONE]`. `at_once`: all in one write."""
    chunks = [chunk(part) if isinstance(part, str) else part for part in parts]

    async def script(call: Call) -> None:
        events: list[Any] = [*chunks]
        if finish is not None:
            events += [chunk(finish=finish), usage(3, len(chunks))]
        if done:
            events.append("[DONE]")
        frames = [http_chunk(sse(event)) for event in events]
        await call.head()
        for frame in [b"".join(frames)] if at_once else frames:
            await call.send(frame, cut_every=cut_every)
        await call.end()

    return script


def refuse(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Script:
    """An error status with a JSON body, or a text as it is."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()

    async def script(call: Call) -> None:
        given = {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        await call.head(status, given, chunked=False)
        await call.send(data)

    return script


def silence(*parts: str, head: bool = True) -> Script:
    """Some text, and then nothing at all with the connection open."""

    async def script(call: Call) -> None:
        if head:
            await call.head()
        for part in parts:
            await call.event(chunk(part))
        await call.hold()

    return script


def reset(*parts: str) -> Script:
    """Some text, and a RST once the test sets `call.go`: a RST takes with it what is not read."""

    async def script(call: Call) -> None:
        await call.head()
        for part in parts:
            await call.event(chunk(part))
        await call.go.wait()
        call.reset()

    return script


def flood(total_bytes: int, *, text: str = "flood " * 20) -> Script:
    """Text as fast as the client takes it, up to `total_bytes` on the wire; `call.written` counts."""

    async def script(call: Call) -> None:
        await call.head()
        block = http_chunk(sse(chunk(text))) * 8
        while call.written < total_bytes:
            await call.send(block)
        await call.event(chunk(finish="stop"))
        await call.event("[DONE]")
        await call.end()

    return script


def paced(tokens: int, per_second: float, *, text: str = " token") -> Script:
    """One chunk a token on a fixed schedule, as a GPU would: late tokens are not spaced out again."""

    async def script(call: Call) -> None:
        loop = asyncio.get_running_loop()
        await call.head()
        started = loop.time()
        frame = http_chunk(sse(chunk(text)))
        for index in range(tokens):
            await asyncio.sleep(max(0.0, started + index / per_second - loop.time()))
            await call.send(frame)
        await call.event(chunk(finish="stop"))
        await call.event(usage(3, tokens))
        await call.event("[DONE]")
        await call.end()

    return script
