"""A model's server with a schedule: `python -m relay.bench.stand_in RATE`, a process of its own.

It streams `max_tokens` chunks at RATE a second to whoever asks `POST .../chat/completions`. Each chunk is the
time at which it was sent, STAMP_BYTES of text, so that whoever reads it knows how late it is, however chunks
were merged on the way.
"""

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from relay.bench.child import child, serve

STAMP_BYTES = 18  # "1700000000.123456 "
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":0,"model":"stand-in",'
    b'"choices":[{"index":0,"delta":{"content":"%17.6f "},"finish_reason":null}]}\n\n'
)
_END = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":0,"model":"stand-in",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
_REQUEST_MAX_BYTES = 1024 * 1024
_TOKENS_MAX = 1_000_000


@contextmanager
def standing_in(rate: float) -> Iterator[str]:
    """Its base URL, for as long as the block lasts. Raises ServerUnfit when it does not start."""
    with child("relay.bench.stand_in", str(rate)) as process:
        yield f"http://127.0.0.1:{process.port}/v1"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float) -> None:
    """One request on a connection; who does not read holds up its own answer alone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        body = orjson.loads(
            await reader.readexactly(min(int(length[1]) if length else 0, _REQUEST_MAX_BYTES))
        )
        tokens = min(int(body.get("max_tokens", 16)), _TOKENS_MAX)
        writer.write(_HEAD)
        started = asyncio.get_running_loop().time()
        for index in range(tokens):
            await asyncio.sleep(started + index / rate - asyncio.get_running_loop().time())
            _write(writer, _CHUNK % time.time())
            await writer.drain()
        _write(writer, _END)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    except (OSError, EOFError, ValueError):
        pass  # it went away, or asked for nothing that is here
    finally:
        writer.close()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _start(rate: float) -> asyncio.Server:
    return await asyncio.start_server(
        lambda reader, writer: _answer(reader, writer, rate), "127.0.0.1", 0, backlog=1024
    )


if __name__ == "__main__":
    serve(_start(float(sys.argv[1])))
