"""The client against a relay of a few lines that cuts, refuses, lies and goes away on request."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from relay.client import (
    Client,
    Delta,
    DigestMismatch,
    Disconnected,
    Done,
    Event,
    Failed,
    Notice,
    OutOfOrder,
    Reconnect,
    Rewind,
    Start,
    Stream,
)
from relay.errors import Forbidden, NotFound, Overloaded, WireProtocol
from relay.position import Position
from tests.support.ports import nobody_listens
from tests.support.steady import steady
from tests.support.wait import wait_until_async

TOKENS = ["Wa", "ter ", "流れ", " — ", "🌊", " goes\n", "down."]


@dataclass
class Request:
    """What a request said."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def after(self) -> int:
        """The offset it wants to go on from."""
        return int(self.headers.get("last-event-id", "0-0").partition("-")[0])


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FakeRelay:
    """Each connection is answered by the next of `answers`; the last one answers all further ones."""

    answers: list[Answer]
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, closed."""
        try:
            request = await _request(reader)
            self.requests.append(request)
            answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
            await answer(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.split("\r\n")
    method, target, _ = lines[0].split(" ")
    pairs = (line.partition(": ") for line in lines[1:] if line)
    headers = {name.lower(): value for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
    return Request(method, urlsplit(target).path, query, headers, body)


@asynccontextmanager
async def relay(*answers: Answer) -> AsyncIterator[FakeRelay]:
    """A fake relay that listens, and is gone afterwards."""
    fake = FakeRelay(list(answers))
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield fake


def client(fake: FakeRelay, **given: Any) -> Client:
    """A client that does not wait long."""
    return Client(fake.url, **{"backoff_s": 0.001, **given})


def frame(kind: str, data: dict[str, Any], id_: str | None = None) -> bytes:
    """One SSE event."""
    line = f"id: {id_}\n" if id_ else ""
    return f"event: {kind}\n{line}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def script(tokens: list[str] = TOKENS, *, sha256: str | None = None) -> list[tuple[int, bytes]]:
    """A whole response as (offset, frame)."""
    content = "".join(tokens).encode()
    frames = [(25, frame("start", {"id": "r1", "model": "m"}, "25-1"))]
    offset = 25
    for token in tokens:
        offset += len(token.encode()) + 1
        frames.append((offset, frame("delta", {"channel": "content", "text": token}, f"{offset}-1")))
    done = {
        "finish_reason": "stop",
        "text_bytes": len(content),
        "sha256": sha256 or hashlib.sha256(content).hexdigest(),
        "usage": {"completion_tokens": len(tokens)},
    }
    return [*frames, (offset + 90, frame("done", done, f"{offset + 90}-1"))]


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nRelay-Consumer: made-up\r\n"
    b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def body(parts: list[bytes]) -> bytes:
    """A chunked body with its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def plays(frames: list[tuple[int, bytes]], *, cut: int | None = None) -> Answer:
    """Sends what the reader lacks, as a relay would; only the first `cut` bytes on the wire if given."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        rest = [data for offset, data in frames if offset > request.after]
        writer.write((HEAD + body([b": ok\n\n", *rest]))[:cut])

    return answer


def says(*frames: bytes) -> Answer:
    """Sends exactly this."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + body([*frames]))

    return answer


def status(code: int, error: dict[str, Any] | None = None, **headers: str) -> Answer:
    """Answers without a stream."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        data = json.dumps(error).encode() if error else b""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        length = "" if code == 204 else f"Content-Length: {len(data)}\r\n"
        writer.write(f"HTTP/1.1 {code} X\r\n{lines}{length}Connection: close\r\n\r\n".encode() + data)

    return answer


async def read(fake: FakeRelay, *, after: str | None = None, **given: Any) -> list[Event]:
    """All events of one stream."""
    async with client(fake, **given) as relay_client, relay_client.stream("r1", after) as events:
        return [event async for event in events]


def text(events: list[Event]) -> str:
    """The content a caller has after these events, rewinds obeyed."""
    kept: list[Delta] = []
    for event in events:
        if isinstance(event, Delta):
            kept.append(event)
        elif isinstance(event, Rewind):
            kept = [delta for delta in kept if delta.position.offset <= event.position.offset]
    return "".join(delta.text for delta in kept)


async def test_whole_response() -> None:
    """A response is read to its end as typed events with their positions, and its digest is compared."""
    async with relay(plays(script())) as fake:
        events = await read(fake)
    start, *deltas, done = events
    assert isinstance(start, Start)
    assert (start.position, start.model) == (Position(25, 1), "m")
    assert text(deltas) == "".join(TOKENS)
    assert isinstance(done, Done)
    assert done.verified
    assert done.usage == {"completion_tokens": 7}
    assert len(fake.requests) == 1
    assert "last-event-id" not in fake.requests[0].headers


async def test_cut_at_every_byte() -> None:
    """Wherever the connection is cut, every event arrives exactly once and in order."""
    tokens = TOKENS[2:5]
    frames = script(tokens)
    size = len(HEAD + body([b": ok\n\n", *(data for _, data in frames)]))
    wanted = ["Start", *["Delta"] * len(tokens), "Done"]
    async with relay(plays(frames)) as fake, client(fake) as relay_client:
        for cut in range(size):
            fake.answers, fake.requests = [plays(frames, cut=cut), plays(frames)], []
            async with relay_client.stream("r1") as stream:
                events = [event async for event in stream]
            assert [type(event).__name__ for event in events] == wanted, f"cut after {cut} bytes"
            assert text(events) == "".join(tokens), f"cut after {cut} bytes"


async def test_cut_again_and_again() -> None:
    """A connection that is cut after every event is no failure as long as each one brings something."""
    frames = script([f"{n} " for n in range(40)])

    async def one(request: Request, writer: asyncio.StreamWriter) -> None:
        await says(next(data for offset, data in frames if offset > request.after))(request, writer)

    async with relay(one) as fake:
        events = await read(fake, retries=2)
    assert text(events) == "".join(f"{n} " for n in range(40))
    assert len(fake.requests) == 42


async def test_resumes_as_itself() -> None:
    """A resumed connection carries the last id and the consumer name that the relay had made."""
    frames = script()
    async with relay(says(*(data for _, data in frames[:3])), plays(frames)) as fake:
        await read(fake)
    assert fake.requests[1].headers["last-event-id"] == f"{frames[2][0]}-1"
    assert "consumer" not in fake.requests[0].query
    assert fake.requests[1].query["consumer"] == "made-up"


async def test_starts_after_a_position() -> None:
    """A stream from the middle asks for the rest, and does not claim to have verified the whole."""
    frames = script()
    async with relay(plays(frames)) as fake:
        events = await read(fake, after=f"{frames[3][0]}-1")
    assert fake.requests[0].headers["last-event-id"] == f"{frames[3][0]}-1"
    assert text(events) == "".join(TOKENS[3:])
    assert isinstance(events[-1], Done)
    assert not events[-1].verified


async def test_a_known_name_goes_on_where_it_was() -> None:
    """The relay says where that is: the rest comes, and nobody claims to have verified the whole."""
    frames = script()
    head = HEAD.replace(b"\r\n\r\n", f"\r\nRelay-Position: {frames[3][0]}-1\r\n\r\n".encode())

    async def goes_on(_request: Request, writer: asyncio.StreamWriter) -> None:
        body = b"".join(data for _, data in frames[4:])
        writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    async with relay(goes_on) as fake, client(fake) as reader:
        events = [event async for event in reader.stream("r1", consumer="phone")]
    assert text(events) == "".join(TOKENS[3:])
    assert isinstance(events[-1], Done)
    assert not events[-1].verified


async def test_digest_mismatch() -> None:
    """Content that is not what was made is an error at the end, never a silent success."""
    async with relay(plays(script(sha256="0" * 64))) as fake:
        with pytest.raises(DigestMismatch, match="SHA-256"):
            await read(fake)


@pytest.mark.parametrize("id_", ["26-1", "25-1", "24-2", "0-0"])
async def test_position_that_goes_back(id_: str) -> None:
    """A position that goes back or stands still without a rewind is an error."""
    frames = script()
    bad = frame("delta", {"channel": "content", "text": "again"}, id_)
    async with relay(says(frames[0][1], frames[1][1], bad)) as fake:
        with pytest.raises(OutOfOrder):
            await read(fake)


@pytest.mark.parametrize(
    "bad",
    [
        b"event: delta\nid: x-1\ndata: {}\n\n",
        b"event: delta\nid: 9-1\ndata: {\n\n",
        b"data: 1\nevent: done\n\n",
    ],
)
async def test_nonsense(bad: bytes) -> None:
    """An event that cannot be read is an error of its own, and is not retried."""
    async with relay(says(bad)) as fake:
        with pytest.raises(WireProtocol):
            await read(fake)
    assert len(fake.requests) == 1


async def test_reconnect_event() -> None:
    """A node that goes away says when to come back: the caller hears it, then the stream goes on."""
    frames = script()
    away = frame("reconnect", {"retry_ms": 120})
    async with relay(says(frames[0][1], frames[1][1], away), plays(frames)) as fake:
        began = time.monotonic()
        events = await read(fake)
        took_s = time.monotonic() - began
    assert [type(event) for event in events[:3]] == [Start, Delta, Reconnect]
    assert events[2].position == events[1].position
    assert text(events) == "".join(TOKENS)
    assert took_s >= 0.12


async def test_no_content() -> None:
    """A response that was already read to its end has no further events."""
    async with relay(status(204)) as fake:
        assert await read(fake, after="999-1") == []


async def test_refusal_is_not_retried() -> None:
    """A refusal is raised at once as the error that the relay names, in its words."""
    refused = status(404, {"error": {"message": "no response r1", "code": "not_found"}})
    async with relay(refused) as fake:
        with pytest.raises(NotFound, match="no response r1"):
            await read(fake)
    assert len(fake.requests) == 1


async def test_retry_after() -> None:
    """A relay that asks for time is given it."""
    async with relay(status(503, Retry_After="1"), plays(script())) as fake:
        began = time.monotonic()
        events = await read(fake)
        took_s = time.monotonic() - began
    assert isinstance(events[-1], Done)
    assert took_s >= 1


async def test_gives_up() -> None:
    """After so many attempts without an event the stream gives up and says why."""
    async with relay(says()) as fake:
        with pytest.raises(Disconnected, match="gave up after 3 attempts"):
            await read(fake, retries=3)
    assert len(fake.requests) == 4


async def test_endless_reconnects() -> None:
    """Nodes that all send the reader away count as attempts: it is not sent round for ever."""
    async with relay(says(frame("reconnect", {"retry_ms": 0}))) as fake:
        with pytest.raises(Disconnected):
            await read(fake, retries=3)


async def test_nobody_there() -> None:
    """No answer at all is a typed error that names the address."""
    with nobody_listens() as port:
        async with client(FakeRelay([], url=f"http://127.0.0.1:{port}")) as relay_client:
            with pytest.raises(Disconnected, match="no answer from http"):
                await relay_client.status("r1")


async def test_rewind_to_a_known_place() -> None:
    """After a rewind to a place it has seen the stream goes on, and the digest is the new text's."""
    frames = script()
    lost = [
        (60, frame("delta", {"text": "lost"}, "60-1")),
        (70, frame("delta", {"text": " too"}, "70-1")),
    ]
    back = frame("rewind", {"position": f"{frames[2][0]}-2"})
    first = [*(data for _, data in frames[:3]), *(data for _, data in lost), back]
    rest = [data.replace(b"-1\n", b"-2\n") for _, data in frames[3:]]
    async with relay(says(*first, *rest)) as fake:
        events = await read(fake)
    assert len(fake.requests) == 1
    assert Rewind(Position(frames[2][0], 1), exact=True) in events
    assert text(events) == "".join(TOKENS)
    assert isinstance(events[-1], Done)
    assert events[-1].verified


@pytest.mark.parametrize("numeric", [False, True])
async def test_rewind_into_a_merged_event(numeric: bool) -> None:
    """A rewind into the middle of an event goes back to before it, and fetches from there."""
    frames = script()
    merged = frame("delta", {"text": "".join(TOKENS[2:5]) + "lost"}, "80-1")
    middle = frames[3][0]
    back = frame("rewind", {"position": middle if numeric else f"{middle}-2"})
    stale = frame("delta", {"text": "must not be seen"}, "90-2")
    first = says(*(data for _, data in frames[:3]), merged, back, stale)
    async with relay(first, plays(frames)) as fake:
        events = await read(fake)
    assert Rewind(Position(frames[2][0], 1), exact=False) in events
    assert fake.requests[1].headers["last-event-id"] == f"{frames[2][0]}-1"
    assert text(events) == "".join(TOKENS)


async def test_notices() -> None:
    """Notices come through; one about this reader alone has no place in the response and moves nothing."""
    frames = script()
    notice = frame("notice", {"kind": "pacing", "level": 2, "reason": "behind"}, "26-1")
    own = frame("notice", {"kind": "live", "level": 0})
    unknown = frame("later-version", {"x": 1}, "999-9")
    async with relay(says(frames[0][1], notice, own, unknown), plays(frames)) as fake:
        events = await read(fake)
    assert isinstance(events[1], Notice)
    assert isinstance(events[2], Notice)
    assert (events[1].kind, events[1].level, events[1].position) == ("pacing", 2, Position(26, 1))
    assert events[2].position == Position(26, 1)
    assert fake.requests[1].headers["last-event-id"] == "26-1"


async def test_failed_response() -> None:
    """A response that fails ends the stream with a typed event."""
    failed = frame("error", {"code": "upstream_timeout", "message": "no token", "retryable": True}, "40-1")
    async with relay(says(script()[0][1], failed)) as fake:
        events = await read(fake)
    assert events[-1] == Failed(Position(40, 1), "upstream_timeout", "no token", retryable=True)
    assert len(fake.requests) == 1


async def test_reads_only_when_asked() -> None:
    """A caller that stops asking stops the relay: only the kernel's buffers fill."""
    piece = frame("delta", {"channel": "reasoning", "text": "x" * 60_000}, "%d-1")
    total = 2000
    sent = 0

    async def flood(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD)
        for number in range(1, total):
            data = piece % number
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            sent = number

    looks: list[int] = []

    def stands() -> bool:
        looks.append(sent)
        return len(looks) > 10 and len(set(looks[-10:])) == 1

    async with relay(flood) as fake, client(fake) as relay_client, relay_client.stream("r1") as stream:
        await anext(stream)
        await wait_until_async(stands, "the relay can send no more")
        stalled_at = sent
        assert stalled_at < total / 4
        for _ in range(stalled_at + 50):
            await anext(stream)
        assert sent > stalled_at


async def test_explicit_acks() -> None:
    """With a window the client confirms what the caller has dealt with, once it is half the window."""
    frames = script()
    acks: list[int] = []

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            assert request.path == "/v1/streams/r1/consumers/made-up/ack"
            acks.append(json.loads(request.body)["position"])
            await status(204)(request, writer)
        else:
            assert request.query["window"] == "20"
            one = [data for offset, data in frames if offset > request.after][:2]
            await says(*one)(request, writer)

    async with (
        relay(answer) as fake,
        client(fake) as relay_client,
        relay_client.stream("r1", window=20, token="t") as stream,
    ):
        events = [event async for event in stream]
    assert text(events) == "".join(TOKENS)
    assert acks == sorted(set(acks))
    assert set(acks) <= {offset for offset, _ in frames}
    assert acks[-1] >= frames[-2][0] - 10


@pytest.mark.parametrize("refused", [0, 503, 404, 410])
async def test_what_is_owed_is_confirmed_soon(refused: int) -> None:
    """Far below half its window a stream is confirmed within a second of each event, in silence too."""
    frames = script()
    acks: list[tuple[float, int]] = []  # those that were taken
    sent: list[tuple[float, int]] = []
    silent = asyncio.Event()
    tries: list[float] = []

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            tries.append(time.monotonic())
            if len(tries) == 1 and refused:
                await status(refused)(request, writer)
                return
            acks.append((clock.now, json.loads(request.body)["position"]))
            await status(204)(request, writer)
            return
        writer.write(HEAD)
        for offset, data in frames[:-1]:
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            sent.append((clock.now, offset))
            await asyncio.sleep(0.1)
        await silent.wait()
        writer.write(body([frames[-1][1]]))

    async with (
        steady() as clock,
        relay(answer) as fake,
        client(fake) as relay_client,
        relay_client.stream("r1", window=100_000) as stream,
        asyncio.TaskGroup() as tasks,
    ):
        read = tasks.create_task(_all(stream))
        await wait_until_async(lambda: bool(acks) and acks[-1][1] == frames[-2][0], "all is confirmed")
        silent.set()
        assert text(await read) == "".join(TOKENS)
        assert stream.connections == 1
    for at, offset in sent:
        confirmed = [ack_at - at for ack_at, acked in acks if acked >= offset]
        assert min(confirmed) < (2.0 if refused else 1.0), (offset, sent, acks)
    assert all(later - earlier > 0.39 for earlier, later in pairwise(tries))  # several at once


async def _all(stream: Stream) -> list[Event]:
    return [event async for event in stream]


async def test_an_ack_that_is_refused_ends_a_silent_stream() -> None:
    """A refusal that no retry can change is raised, also while no event comes."""
    frames = script()
    over = asyncio.Event()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            await status(403, {"error": {"message": "not yours", "param": None}})(request, writer)
            return
        writer.write(HEAD + body([frames[0][1]])[:-5])
        await writer.drain()
        await over.wait()  # silence

    async with (
        relay(answer) as fake,
        client(fake) as relay_client,
        relay_client.stream("r1", window=100_000) as stream,
    ):
        with pytest.raises(Forbidden, match="not yours"):
            await _all(stream)
        over.set()


async def test_given_up_read_loses_nothing() -> None:
    """A caller may stop waiting for an event and ask again later: none is lost."""
    frames = script()
    go_on = asyncio.Event()

    async def halting(request: Request, writer: asyncio.StreamWriter) -> None:
        head, tail = frames[0][1], b"".join(data for _, data in frames[1:])
        writer.write(HEAD + body([head])[:-5])
        await writer.drain()
        await go_on.wait()
        writer.write(body([tail]))

    async with (
        relay(halting, plays(frames)) as fake,
        client(fake) as relay_client,
        relay_client.stream("r1") as stream,
    ):
        await anext(stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        go_on.set()
        assert text([event async for event in stream]) == "".join(TOKENS)


async def test_calls() -> None:
    """The plain calls send what the contract says, with the key, and raise what the relay answers."""
    created = {"id": "a/b", "status": "queued", "model": "m", "created_at": 1, "events_url": "/e"}
    async with (
        relay(
            status(201, {**created, "text_url": "/t", "token": "tok"}),
            status(200, {"status": "running"}),
            status(202),
            status(429, {"error": {"message": "full", "code": "overloaded"}}, Retry_After="7"),
        ) as fake,
        client(fake, api_key="secret-key") as relay_client,
    ):
        answer = await relay_client.create(model="m", prompt="p", idempotency_key="once")
        assert (answer.id, answer.token) == ("a/b", "tok")
        assert await relay_client.status("a/b") == {"status": "running"}
        await relay_client.cancel("a/b")
        with pytest.raises(Overloaded, match="full") as refused:
            await relay_client.text("a/b")
    assert refused.value.retry_after_s == 7
    post, get, delete, _ = fake.requests
    assert json.loads(post.body) == {"model": "m", "prompt": "p"}
    assert post.headers["idempotency-key"] == "once"
    assert (get.method, get.path) == ("GET", "/v1/streams/a%2Fb")
    assert delete.method == "DELETE"
    assert all(request.headers["authorization"] == "Bearer secret-key" for request in fake.requests)


async def test_not_a_relay() -> None:
    """An address that answers something else is told from a relay."""

    async def page(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")

    async with relay(page) as fake, client(fake) as relay_client:
        with pytest.raises(WireProtocol, match="is this a relay"):
            await relay_client.status("r1")
