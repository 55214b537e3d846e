"""The load client against a server that speaks the contract and whose lateness is known."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from relay import simulation
from relay.bench import run as bench_run
from relay.bench.load import Load, Plan
from relay.bench.system import Shape


@dataclass
class Behaviour:
    """What the fake node does to its responses."""

    late_s: float = 0.0  # every token arrives this much after it was due
    per_frame: int = 1  # tokens in one delta
    refuse: bool = False  # 429 instead of 201
    corrupt: bool = False  # one character of the text is another
    cut_after: int | None = None  # tokens after which the connection is closed
    comment: bool = False  # a keep-alive comment and a notice before each delta
    may_end: Callable[[], bool] = lambda: True  # no response ends before this says so
    asked: dict[str, Any] | None = None  # the simulation of the last POST; a GET plays it from its own start


class FakeNode(asyncio.Protocol):
    """One connection: a POST, then a GET, then a simulated response on its schedule."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.write = transport.write

    def connection_lost(self, _: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            body = orjson.loads(data.partition(b"\r\n\r\n")[2])
            self.behaviour.asked = body["simulation"]
            status, answer = ("429 No", {}) if self.behaviour.refuse else ("201 Created", {"id": "r1"})
            payload = orjson.dumps(answer)
            self.write(
                b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(payload)) + payload
            )
        else:
            assert data.startswith(b"GET /v1/streams/r1/events HTTP/1.1\r\n")
            simulated = self.behaviour.asked
            assert simulated is not None
            self.seed, self.tokens = simulated["seed"], simulated["tokens"]
            self.rate = simulated["tokens_per_second"]
            self.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            self.chunk(b": ok\n\n")
            self.started, self.sent, self.digest = time.time(), 0, hashlib.sha256()
            self.zero = self.loop.time() + self.behaviour.late_s
            self.event(b"start", {"id": "r1", "started_at": self.started})
            self.step()

    def step(self) -> None:
        """Send the next delta, then wait until the last token of the one after it is due."""
        behaviour = self.behaviour
        if self.timer is not None and self.sent < self.tokens:
            stop = min(self.sent + behaviour.per_frame, self.tokens)
            self.delta(simulation.text(self.seed, self.sent, stop))
            self.sent = stop
        if behaviour.cut_after is not None and self.sent >= behaviour.cut_after:
            self.transport.close()
        elif self.sent == self.tokens and not behaviour.may_end():
            self.timer = self.loop.call_later(0.01, self.step)
        elif self.sent == self.tokens:
            self.event(b"done", {"finish_reason": "stop", "sha256": self.digest.hexdigest()})
            self.write(b"0\r\n\r\n")
            self.transport.close()
        else:
            last = min(self.sent + behaviour.per_frame, self.tokens) - 1
            self.timer = self.loop.call_at(self.zero + last / self.rate, self.step)

    def delta(self, text: str) -> None:
        if self.behaviour.comment:
            self.chunk(b": keep-alive\n\n")
            self.event(b"notice", {"kind": "coalescing", "level": 1})
        self.digest.update(text.encode())
        if self.behaviour.corrupt:
            text = "X" + text[1:]
        self.event(b"delta", {"channel": "content", "text": text})

    def event(self, name: bytes, data: dict[str, Any]) -> None:
        self.chunk(b"event: %s\nid: 1-1\ndata: %s\n\n" % (name, orjson.dumps(data)))

    def chunk(self, content: bytes) -> None:
        self.write(b"%x\r\n%s\r\n" % (len(content), content))


@asynccontextmanager
async def fake_node(behaviour: Behaviour):
    """A node on a free port; yields its URL."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FakeNode(behaviour), "127.0.0.1", 0, backlog=4096)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def run(behaviour: Behaviour, *, together: int = 0, **changes: Any) -> dict[str, Any]:
    """A small run of the load client against one fake node; none ends before so many stream at once."""
    async with fake_node(behaviour) as url:
        given = {"responses": 5, "tokens": 30, "rate": 150.0, "ramp_s": 0.05, "grace_s": 30.0} | changes
        load = Load(Plan(urls=[url], **given), lambda _: None)
        if together:
            behaviour.may_end = lambda: load.tally.peak_streaming >= together
        return await asyncio.to_thread(load.run)


async def test_every_token_is_delivered_timed_and_checked():
    """All tokens of all responses are counted, and every digest is compared."""
    result = await run(Behaviour(), together=5)
    assert result["outcomes"] == {"stop": 5}
    assert result["tokens"] == result["tokens_expected"] == 150
    assert result["delivered"] == 1.0
    assert result["frames"] == 150
    assert result["digests"] == {"checked": 5, "ok": 5, "bad": 0}
    assert result["text_bytes"] == 5 * len(simulation.text(1, 0, 30).encode())
    assert result["problems"] == []
    assert result["peak_streaming"] == 5
    assert result["created_ms"]["max"] < result["first_token_ms"]["max"]


async def test_every_viewer_of_a_response_counts():
    """With three viewers a response is asked for once, read three times, and every token counts thrice."""
    result = await run(Behaviour(), together=15, viewers=3)
    assert result["outcomes"] == {"stop": 15}
    assert result["tokens"] == result["tokens_expected"] == 450
    assert result["digests"] == {"checked": 15, "ok": 15, "bad": 0}
    assert result["peak_streaming"] == 15


async def test_latency_is_counted_from_the_schedule_of_the_source():
    """A server that is 80 ms late throughout is seen as 80 ms late for every token, not as on time."""
    result = await run(Behaviour(late_s=0.08), tokens=150)
    assert 79 <= result["latency_ms"]["min"] < 160  # a busy machine adds to some, hardly to all of a second
    assert result["early_tokens"] == 0


async def test_each_token_of_a_coalesced_frame_has_its_own_latency():
    """In a frame of six tokens at 150/s the first is five intervals (33 ms) older than the last."""
    result = await run(Behaviour(per_frame=6))
    assert result["frames"] == 25
    assert result["tokens_per_frame"] == 6.0
    assert result["latency_ms"]["max"] - result["latency_ms"]["min"] >= 33


async def test_comments_and_notices_are_not_text():
    """Notices are counted by kind; neither they nor comments disturb the text."""
    result = await run(Behaviour(comment=True))
    assert result["digests"]["ok"] == 5
    assert result["notices"] == {"coalescing": 150}


async def test_a_wrong_text_is_found():
    """A text that is not the one that `done` vouches for is counted and described."""
    result = await run(Behaviour(corrupt=True))
    assert result["digests"] == {"checked": 5, "ok": 0, "bad": 5}
    assert len(result["problems"]) == 1  # the same five times is told once


async def test_a_cut_response_is_a_loss():
    """Tokens that never came lower what was delivered; nothing is retried."""
    result = await run(Behaviour(cut_after=12))
    assert result["outcomes"] == {"cut": 5}
    assert result["delivered"] == 0.4
    assert result["digests"]["checked"] == 0


async def test_a_refusal_is_counted():
    """A node that sheds load is no error of the client's."""
    result = await run(Behaviour(refuse=True))
    assert result["outcomes"] == {"refused": 5}
    assert result["tokens"] == 0
    assert result["latency_ms"]["p99"] == 0


async def test_a_run_stops_by_itself():
    """A server that is behind by more than the grace does not hold the run."""
    result = await run(Behaviour(late_s=60), ramp_s=0, grace_s=1.0)
    assert result["wall_s"] < 30
    assert result["outcomes"] == {"cut": 5}


async def test_nobody_listens():
    """Without a server the run ends with every response unreachable."""
    plan = Plan(urls=["http://127.0.0.1:1"], responses=3, tokens=5, rate=100.0, ramp_s=0.01)
    result = await asyncio.to_thread(Load(plan, lambda _: None).run)
    assert result["outcomes"] == {"unreachable": 3}


@pytest.mark.parametrize("responses", [100, 1000])
def test_schedules_are_spread_within_a_token_interval(responses: int):
    """No two tenths of a token interval differ much in how many responses start in them."""
    plan = Plan(urls=[], responses=responses, rate=50.0, ramp_s=1.0)
    phases = [int(start % 0.02 * 500) for start in plan.starts_s()]
    share = responses / 10
    assert all(share * 0.5 < phases.count(tenth) < share * 1.6 for tenth in range(10))


async def test_the_client_is_a_process_of_its_own():
    """The whole way: plan in on its input, progress and result out, CPU time of the client beside it."""
    seen: list[dict[str, Any]] = []
    async with fake_node(Behaviour()) as url:
        plan = Plan([], responses=20, tokens=100, rate=50.0, ramp_s=0.1)
        shape = Shape(urls=(url,), key="a-secret-key")
        result = await asyncio.to_thread(bench_run.measure, shape, plan, seen.append)
    assert result["digests"]["ok"] == 20
    assert seen
    assert seen[-1]["open"] <= 20
    assert set(result["cpu"]["us_per_token"]) == {"load", "total"}

    assert 0 < result["cpu"]["seconds"]["load"] < 1
    assert "a-secret-key" not in str(result)
