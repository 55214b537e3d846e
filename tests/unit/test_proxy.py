"""The proxy does what it says to real sockets: what a fault test rests on must itself be tested."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TypeVar

import pytest

from tests.support.proxy import Proxy
from tests.support.wait import wait_until_async

T = TypeVar("T")
WITHIN_S = 30.0


async def soon(awaited: Awaitable[T]) -> T:
    """Its result, or an error when that takes long."""
    async with asyncio.timeout(WITHIN_S):
        return await awaited


class Echo:
    """A server that answers each piece with itself, and knows its connections."""

    def __init__(self) -> None:
        self.connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.ends = 0
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its end."""
        self.connections.append((reader, writer))
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
                await self.may_read.wait()
        except OSError:
            pass
        finally:
            self.ends += 1
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    """An echo, and a line before it."""
    server = Echo()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with Proxy(
        "127.0.0.1", listener.sockets[0].getsockname()[1], buffer_bytes=8192
    ).listening() as line:
        yield server, line
    server.may_read.set()
    listener.close()
    await wait_until_async(lambda: server.ends == len(server.connections), "the echo's connections end")
    await listener.wait_closed()


class Client:
    """A connection through the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, line: Proxy) -> "Client":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", line.port))

    async def say(self, data: bytes) -> bytes:
        """Send, and wait for as much."""
        self.writer.write(data)
        return await soon(self.reader.readexactly(len(data)))

    async def ending(self) -> bytes:
        """What comes until the connection ends; `reset` when it ended by a reset."""
        try:
            return await soon(self.reader.read(-1))
        except OSError:
            return b"reset"

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with suppress(OSError):
            await soon(self.writer.wait_closed())


async def test_bytes_pass_both_ways_and_an_end_travels_behind_them(echo: tuple[Echo, Proxy]) -> None:
    """A megabyte, more than it ever holds, and the end of the file after it."""
    _, line = echo
    client = await Client.to(line)
    data = bytes(range(256)) * 4096
    assert await client.say(data) == data
    client.writer.write(b"last")
    client.writer.write_eof()
    assert await client.ending() == b"last"
    await client.close()


async def test_a_delay_is_a_delay_each_way_and_keeps_the_order(echo: tuple[Echo, Proxy]) -> None:
    """Two pieces, one after the other, come so much later and in order."""
    _, line = echo
    client = await Client.to(line)
    await client.say(b"warm")
    line.delay_s = 0.1
    began = asyncio.get_running_loop().time()
    client.writer.write(b"one")
    await asyncio.sleep(0)
    assert await client.say(b" two") == b"one "
    assert asyncio.get_running_loop().time() - began >= 0.2
    await client.close()


async def test_a_frozen_line_passes_nothing_and_loses_nothing(echo: tuple[Echo, Proxy]) -> None:
    """Also a connection made meanwhile waits, and is served after the thaw."""
    _, line = echo
    client = await Client.to(line)
    await client.say(b"warm")
    line.freeze()
    late = await Client.to(line)
    for each in (client, late):
        each.writer.write(b"held")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await each.reader.readexactly(1)
    line.thaw()
    assert [await soon(each.reader.readexactly(4)) for each in (client, late)] == [b"held", b"held"]
    await client.close()
    await late.close()


@pytest.mark.parametrize("told", ["client", "server"])
async def test_half_open_tells_one_side_alone(echo: tuple[Echo, Proxy], told: str) -> None:
    """The other side hears nothing until the line is healed."""
    server, line = echo
    client = await Client.to(line)
    await client.say(b"warm")
    assert line.half_open(told) == 1
    if told == "client":
        assert await client.ending() == b"reset"
        assert server.ends == 0
        line.heal()
        await wait_until_async(lambda: server.ends == 1, "the server hears of it")
    else:
        await wait_until_async(lambda: server.ends == 1, "the server hears of it")
        client.writer.write(b"into the void")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
    await client.close()


async def test_a_cut_in_the_middle_of_a_frame(echo: tuple[Echo, Proxy]) -> None:
    """So many bytes arrive, and then nothing more."""
    _, line = echo
    client = await Client.to(line)
    await client.say(b"warm")
    line.cut_after(5)
    client.writer.write(b"0123456789")
    assert await client.ending() == b"01234"
    assert line.lost == 1
    await client.close()


async def test_a_command_is_lost_before_it_runs_and_a_reply_after(echo: tuple[Echo, Proxy]) -> None:
    """The first never reaches the server; the second's answer never reaches the client."""
    server, line = echo
    line.lose_command(b"MARK")
    client = await Client.to(line)
    await client.say(b"warm")
    client.writer.write(b"a MARK")
    assert await client.ending() == b"reset"
    await wait_until_async(lambda: server.ends == 1, "the server hears of the cut")
    line.lose_reply(b"MARK")
    again = await Client.to(line)
    await again.say(b"warm")
    again.writer.write(b"a MARK")
    assert await again.ending() == b"reset"
    assert line.lost == 2
    await client.close()
    await again.close()


async def test_a_slow_end_slows_the_other(echo: tuple[Echo, Proxy]) -> None:
    """A server that does not read is not read for: what leaves the client is bounded."""
    server, line = echo
    client = await Client.to(line)
    await client.say(b"warm")
    server.may_read.clear()
    client.writer.write(bytes(32 * 1024 * 1024))
    transport = client.writer.transport
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await client.writer.drain()
    assert transport.get_write_buffer_size() > 16 * 1024 * 1024
    transport.abort()
    await client.close()


async def test_a_line_follows_its_target_and_may_turn_away(echo: tuple[Echo, Proxy]) -> None:
    """New connections go where the target is now; nobody there is a reset, as is being turned away."""
    _, line = echo
    there, line.target = line.target, ("127.0.0.1", 1)
    client = await Client.to(line)
    assert await client.ending() == b"reset"
    await client.close()
    line.target, line.turns_away = there, True
    client = await Client.to(line)
    assert await client.ending() == b"reset"
    await client.close()
    line.heal()
    client = await Client.to(line)
    assert await client.say(b"back") == b"back"
    line.cut()
    assert await client.ending() == b"reset"
    await client.close()
