"""The readers of the benchmark, each kind against a plain SSE server on loopback that knows no relay."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from relay.bench.kinds import read
from relay.bench.muster import Muster, faults
from relay.bench.readers import Habits, Kind, Target
from relay.bench.reception import Ended, Outcome, Reception
from relay.errors import InvalidValue, WireProtocol
from tests.support.ports import nobody_listens
from tests.support.steady import steady
from tests.support.wait import wait_until_async

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"  # a body that ends with the connection
EVENT = b"data: 0123456789\n\n"
LONG_S = 20.0

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Serves each connection by one script; keeps the heads of the requests, and how connections ended."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[str] = []
        self.endings: list[str] = []  # what the server saw: "eof", or the name of an error
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""
        self._looks_while_held = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        self.writers.append(writer)
        try:
            await self.script(reader, writer)
            self.endings.append("eof" if reader.at_eof() else "done")
        except OSError as error:
            self.endings.append(type(error).__name__)
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def has_been_held(self, looks: int = 10) -> bool:
        """Whether its client did not take what was there at so many looks."""
        self._looks_while_held += self.writers[-1].transport.get_write_buffer_size() > 0
        return self._looks_while_held >= looks


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    """A server for as long as the block lasts."""
    server = Server(script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/events"
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()


async def ten_events(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ten events and the end."""
    writer.write(HEAD + EVENT * 10)
    await writer.drain()


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Events for as long as the client takes them."""
    writer.transport.set_write_buffer_limits(high=0)
    writer.write(HEAD)
    while True:
        writer.write(EVENT * 100)
        await writer.drain()
        await asyncio.sleep(0)


async def outcome_of(kind: Kind, server: Server, seconds: float = LONG_S, **habits: object) -> Outcome:
    """What one reader saw of a server."""
    until = asyncio.get_running_loop().time() + seconds
    return await read(kind, Target.of(server.url), Habits(**habits), until=until)  # type: ignore[arg-type]


async def outcome_when(
    kind: Kind, server: Server, reached: Callable[[Outcome], bool], **habits: object
) -> Outcome:
    """What one reader has seen when it is stopped, as soon as `reached` or it has ended."""
    outcome, until = Outcome(), asyncio.get_running_loop().time() + 10 * LONG_S
    given = Habits(**habits)  # type: ignore[arg-type]
    reading = asyncio.create_task(read(kind, Target.of(server.url), given, until=until, outcome=outcome))
    await wait_until_async(lambda: reading.done() or reached(outcome), "it has come so far")
    reading.cancel()
    await asyncio.wait([reading])
    return outcome


@pytest.mark.parametrize(
    "kind", [Kind.FAST, Kind.DRIPPING, Kind.FLAPPING, Kind.HALF_CLOSED, Kind.SLOW_PROCESSOR]
)
async def test_every_kind_that_stays_gets_everything(kind: Kind) -> None:
    """However slowly it reads: ten events, and the server's close."""
    async with serving(ten_events) as server:
        outcome = await outcome_of(kind, server, drip_bytes_per_s=1000, flap_s=0.05)
    assert (outcome.ended, outcome.events, outcome.text_bytes) == (Ended.CLOSED, 10, 100)
    assert outcome.received_bytes == len(HEAD + EVENT * 10)
    assert (outcome.status, outcome.connections, outcome.exact) == (200, 1, None)
    assert outcome.first_byte_s is not None


async def test_a_stalled_reader_leaves_the_rest_unread() -> None:
    """It stays connected, and what its small window lets in stays in its kernel."""
    async with serving(flood) as server:
        outcome = await outcome_when(
            Kind.STALLED, server, lambda outcome: outcome.events >= 1 and server.has_been_held()
        )
    assert outcome.ended is Ended.OPEN
    assert outcome.events >= 1
    assert outcome.received_bytes <= 1024
    assert 0 < outcome.unread_bytes <= 8192


async def test_a_stalled_reader_that_returns_reads_on() -> None:
    """On the same connection, from where it was."""
    async with serving(ten_events) as server:
        outcome = await outcome_of(Kind.STALLED, server, absent_s=0.1)
    assert (outcome.ended, outcome.events, outcome.connections) == (Ended.CLOSED, 10, 1)


async def test_a_dripping_reader_keeps_its_rate() -> None:
    """Of a server that sends as fast as it can, so much a second."""
    loop = asyncio.get_running_loop()
    async with serving(flood) as server, steady() as clock:
        outcome = await outcome_when(
            Kind.DRIPPING,
            server,
            lambda outcome: outcome.received_bytes >= 2000,
            drip_bytes_per_s=2000,
            drip_every_s=0.05,
        )
        took_s = loop.time() - outcome.asked_at
    assert outcome.ended is Ended.OPEN
    assert took_s >= 0.9
    assert clock.now <= 2.0


async def test_a_reader_ends_when_its_time_is_over() -> None:
    """Then, and not before; what is open stays so for the server to see."""

    async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    loop = asyncio.get_running_loop()
    async with serving(silence) as server:
        began = loop.time()
        outcome = await outcome_of(Kind.FAST, server, 0.2)
        assert loop.time() - began >= 0.2
        heard = ["eof"] * outcome.connections
        await wait_until_async(lambda: server.endings == heard, "the server hears that it went")
    assert (outcome.ended, outcome.received_bytes) == (Ended.OPEN, 0)


async def test_a_half_closed_reader_says_so_to_the_server() -> None:
    """The server reads its end of file and can still answer."""

    async def after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await ten_events(reader, writer)

    async with serving(after_eof) as server:
        outcome = await outcome_of(Kind.HALF_CLOSED, server)
    assert (outcome.events, server.endings) == (10, ["eof"])


async def test_a_vanished_reader_says_nothing_to_the_server() -> None:
    """Neither end of file nor reset, while the server's bytes stay unacknowledged."""
    heard = asyncio.Event()
    told, at_leave = 0, []

    async def one_then_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal told
        writer.write(HEAD + EVENT)
        await writer.drain()
        while not heard.is_set():
            writer.write(EVENT)
            told += 1
            await asyncio.sleep(0.01)
            if reader.at_eof() or reader.exception():
                heard.set()

    def long_gone(outcome: Outcome) -> bool:
        if outcome.ended is Ended.LEFT and not at_leave:
            at_leave[:] = [told, outcome.events]
        return heard.is_set() or (bool(at_leave) and told > at_leave[0] + 30)

    async with serving(one_then_listen) as server:
        outcome = await outcome_when(Kind.VANISHED, server, long_gone)
        assert not heard.is_set()
        heard.set()
    assert (outcome.ended, outcome.connections) == (Ended.LEFT, 1)
    assert outcome.events == at_leave[1]


async def test_a_reset_is_one_and_falls_within_an_event() -> None:
    """The server sees ECONNRESET; the reader comes back behind the last id it had."""

    async def numbered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for index in range(20):
            writer.write((HEAD if not index else b"") + b"id: %d\ndata: %s\n\n" % (index, b"x" * 500))
        await writer.drain()
        if len(server.requests) == 1:
            await reader.read()

    async with serving(numbered) as server:
        outcome = await outcome_of(Kind.RST, server, absent_s=0)
    assert server.endings[0] == "ConnectionResetError"
    assert outcome.connections == 2
    assert "Last-Event-ID: " in server.requests[1]
    assert outcome.ended is Ended.CLOSED


async def test_a_slow_processor_reads_no_more_than_its_window() -> None:
    """A server that knows no acks is not read while so much is unprocessed."""
    async with serving(flood) as server:
        outcome = await outcome_when(
            Kind.SLOW_PROCESSOR,
            server,
            lambda outcome: outcome.text_bytes >= 1000 and server.has_been_held(30),
            window=1000,
            process_bytes_per_s=1000,
        )
    assert outcome.text_bytes >= 1000
    assert outcome.received_bytes < 64 * 1024
    assert outcome.ended is Ended.OPEN


async def test_a_cut_is_told_as_a_reset() -> None:
    """The server's RST is no end of the response."""

    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + EVENT)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SOL_SOCKET, SO_LINGER
        writer.transport.abort()

    async with serving(cut) as server:
        outcomes = [
            await outcome_of(Kind.FAST, server),
            await outcome_when(Kind.STALLED, server, lambda _: len(server.endings) == 2),
        ]
    assert [outcome.ended for outcome in outcomes] == [Ended.RESET] * 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", "404"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1.1 answer"),
    ],
)
async def test_what_is_no_event_stream_is_refused(answer: bytes, told: str) -> None:
    """With the reason; and the muster's result says that something is wrong."""

    async def other(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async with serving(other) as server:
        muster = Muster((Kind.FAST, Kind.SLOW_PROCESSOR), count=2, seconds=LONG_S, habits=Habits())

        async def make(_: Kind) -> Target:
            return Target.of(server.url)

        await muster.run(make)
    result = json.loads(json.dumps(muster.result()))
    assert [row["ended"] for row in result["kinds"]] == [{"refused": 2}] * 2
    assert told in result["kinds"][0]["problems"][0]
    assert faults(result) == ["refused: fast, slow-processor"]


async def test_nobody_there_is_refused() -> None:
    """A port that nobody listens on."""
    server = Server(ten_events)
    with nobody_listens() as port:
        server.url = f"http://127.0.0.1:{port}/events"
        outcome = await outcome_of(Kind.FAST, server)
    assert (outcome.ended, outcome.connections) == (Ended.REFUSED, 0)


@pytest.mark.parametrize("url", ["https://example.test/", "127.0.0.1:80", "http:///x", ""])
def test_an_address_that_cannot_be_read(url: str) -> None:
    """Raw sockets speak plain HTTP."""
    with pytest.raises(InvalidValue, match="http://HOST:PORT"):
        Target.of(url)


def relay_answer(text: str, said: str, *, chunked: bool = True) -> bytes:
    """A relay's answer with one delta of `text`, and a `done` with the digest of `said`."""
    done = {
        "finish_reason": "stop",
        "text_bytes": len(said),
        "sha256": hashlib.sha256(said.encode()).hexdigest(),
    }
    body = (
        b'event: start\nid: 5-1\ndata: {"id":"rs_1","model":"m"}\n\n'
        + f"event: delta\nid: 9-1\ndata: {json.dumps({'channel': 'content', 'text': text})}\n\n".encode()
        + f"event: done\nid: 20-1\ndata: {json.dumps(done)}\n\n".encode()
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nRelay-Consumer: c-1\r\n"
    if not chunked:
        return head + b"\r\n" + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_relay_s_text_is_checked_against_its_digest(step: int, *, chunked: bool) -> None:
    """However the bytes are cut, and however the body is framed."""
    data = relay_answer("naïve", "naïve", chunked=chunked)
    reception = Reception(Outcome())
    for at in range(0, len(data), step):
        reception.feed(data[at : at + step], float(at))
    assert (reception.outcome.exact, reception.outcome.ended) == (True, Ended.TERMINAL)
    assert (reception.outcome.text_bytes, reception.outcome.position) == (6, 20)
    assert reception.consumer == "c-1"
    assert not reception.is_mid_frame


def test_another_text_is_wrong() -> None:
    """The digest is not the one of what came."""
    reception = Reception(Outcome())
    with pytest.raises(WireProtocol):
        reception.feed(relay_answer("one", "two"), 0.0)
    assert reception.outcome.exact is False
