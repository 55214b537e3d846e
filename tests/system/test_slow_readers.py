"""Slow readers of every kind, on raw sockets, each on a simulated source and on an HTTP upstream of ours.

One scene is played once: every kind reads a response of its own from each source, all at the same time,
beside fast readers; the tests look at what came of it. Whatever a reader does, what it has is the
beginning of a text that ends within bound, with a digest that is right, and it costs nobody else anything.
"""

import asyncio
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relay import simulation
from relay.bench.kinds import read
from relay.bench.readers import Ack, Habits, Kind, Target
from relay.bench.reception import Ended, Outcome
from relay.embedded import EmbeddedServer
from relay.sse import Event
from tests.support.keys import assert_no_leaks
from tests.support.servers import admin
from tests.support.stopwatch import Stopwatch
from tests.support.system import Api, Reader, Worker, metric
from tests.support.upstream import Call, Upstream, chunk, usage
from tests.support.wait import wait_until, wait_until_async

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's sockets, and /proc"),
    pytest.mark.timeout(300),
]

TOKENS, RATE = 480, 120.0
# Longer than a slow reader needs for what it takes at once: a record, acknowledged as a whole, or what is in
# its receive buffer, for its kernel opens the window only when much of that has been read: four seconds,
# where the test's own process is not late.
PAUSE_MAX_S, ABANDON_AFTER_S = 12.0, 5.0
NODE = {"tcp_maxseg": 1448, "notsent_lowat_bytes": 1024, "credit_bytes": 1024, "keepalive_s": 1}
WORKER = {"window_bytes": 1024, "pause_max_s": PAUSE_MAX_S, "abandon_after_s": ABANDON_AFTER_S}
SOURCES = ("simulated", "upstream")
ENDED = ("completed", "cancelled", "failed")
END_WITHIN_S = 90.0
LEFT_WITHIN_S = 30.0
# Of readers that are not to be held back: more than is gathered while a busy machine is late.
WIDE_BYTES = 4096
LOOK_EVERY_S = 0.1  # at twenty responses at once: not so often that it is a load


# --- the stage


async def as_told(call: Call) -> None:
    """An upstream that says what the prompt asks for: the simulation's tokens, on a schedule of its own."""
    asked = json.loads(call.json["messages"][-1]["content"])
    loop = asyncio.get_running_loop()
    started = loop.time()
    await call.head()
    for index in range(asked["tokens"]):
        if asked["tokens_per_second"]:
            await asyncio.sleep(max(0.0, started + index / asked["tokens_per_second"] - loop.time()))
        await call.event(chunk(simulation.token(asked["seed"], index)))
    await call.event(chunk(finish="stop"))
    await call.event(usage(3, asked["tokens"]))
    await call.event("[DONE]")
    await call.end()


@contextmanager
def upstream_thread() -> Iterator[Upstream]:
    """The upstream on a loop of its own: it has its own speed, whatever the test does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    upstream = Upstream(as_told)
    try:
        asyncio.run_coroutine_threadsafe(upstream.__aenter__(), loop).result(10)
        yield upstream
    finally:
        asyncio.run_coroutine_threadsafe(upstream.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class House(NamedTuple):
    """One node, one worker, and the upstream behind them."""

    api: Api
    worker: Worker
    upstream: Upstream

    def create(self, source: str, seed: int, tokens: int = TOKENS, rate: float = RATE, **more: object) -> str:
        """A response of either source that says the simulation's text; its id."""
        if source == "simulated":
            return str(self.api.create(tokens, rate, seed, **more)["id"])
        prompt = json.dumps({"tokens": tokens, "tokens_per_second": rate, "seed": seed})
        answer = self.api.call("POST", "/v1/streams", {"model": "upstream", "prompt": prompt, **more})
        assert answer.status == 201, answer
        return str(answer.json["id"])

    @property
    def asked(self) -> int:
        """Connections that the upstream serves."""
        return len(self.upstream._tasks)

    def target(self, response_id: str, *, window: int | None = None, consumer: str | None = None) -> Target:
        """What a reader of a response asks for; with a window it acknowledges."""
        url = f"http://127.0.0.1:{self.api.port}/v1/streams/{response_id}/events"
        given = [f"window={window}"] if window else []
        given += [f"consumer={consumer}"] if consumer else []

        async def ack(name: str, offset: int) -> None:
            path = f"/v1/streams/{response_id}/consumers/{name}/ack"
            answer = await asyncio.to_thread(self.api.call, "POST", path, {"position": offset})
            assert answer.status == 204, answer

        acks: Ack | None = ack if window else None
        return Target.of(url + ("?" + "&".join(given) if given else ""), ack=acks)

    async def ended(self, response_id: str) -> dict[str, Any]:
        """Wait for the end of a response; its status JSON."""
        return await self.reaches(response_id, *ENDED)

    async def reaches(self, response_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until a response is in one of these states; its status JSON."""
        deadline = time.monotonic() + END_WITHIN_S
        while True:
            told = await asyncio.to_thread(self.api.status, response_id)
            if told["status"] in statuses:
                return told
            assert time.monotonic() < deadline, f"waited {END_WITHIN_S} s for {statuses}: {told}"
            await asyncio.sleep(LOOK_EVERY_S)

    def story_of(self, response_id: str) -> Reader:
        """The whole of an ended response, as a reader that comes now gets it."""
        return Reader(self.api.port, f"/v1/streams/{response_id}/events").run()

    def open_files(self) -> int:
        """Descriptors of the node and the worker."""
        return sum(
            len(list(Path(f"/proc/{process.pid}/fd").iterdir())) for process in (self.api, self.worker)
        )


@contextmanager
def house_of(node: dict[str, Any], worker: dict[str, Any]) -> Iterator[House]:
    """A house with these settings; at its end no reader, response or key is left in it."""
    with (
        upstream_thread() as upstream,
        EmbeddedServer() as redis,
        Api(redis.url, upstream_base_url=upstream.base_url, **node) as api,
        Worker(redis.url, upstream_base_url=upstream.base_url, **worker) as working,
    ):
        yield House(api, working, upstream)
        with admin(redis.url) as client:
            assert_no_leaks(client)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Small windows, short patience, and TCP's own for clients that are gone."""
    with house_of(NODE, WORKER) as house:
        yield house


@dataclass
class Seen:
    """What one reader saw, event by event."""

    outcome: Outcome = field(default_factory=Outcome)
    parts: list[tuple[float, str]] = field(default_factory=list)  # when, and the content of one delta

    def note(self, event: Event, now: float) -> None:
        """One event; the loop's time."""
        data = json.loads(event.data)
        if event.event == "delta" and data["channel"] == "content":
            self.parts.append((now, data["text"]))

    @property
    def text(self) -> str:
        """The content so far."""
        return "".join(text for _, text in self.parts)

    def until(self, moment: float) -> str:
        """The content before a moment."""
        return "".join(text for at, text in self.parts if at < moment)

    def deltas_of(self, start: int, stop: int) -> int:
        """How many deltas brought the characters from `start` to `stop`."""
        return sum(start < end <= stop for end in accumulate(len(text) for _, text in self.parts))

    async def read(self, kind: Kind, target: Target, habits: Habits, seconds: float = END_WITHIN_S) -> None:
        """Read for so long at most."""
        until = asyncio.get_running_loop().time() + seconds
        await read(kind, target, habits, until=until, outcome=self.outcome, on_event=self.note)


# --- the scene


class Case(NamedTuple):
    """One kind in one of its forms, and how its response ends.

    `told` are notices that there must be: of each set at least one.
    """

    name: str
    kind: Kind
    habits: Habits = Habits(after_events=10)
    ends: str = "stop"
    told: tuple[frozenset[str], ...] = ()
    returns_when_paused: bool = False
    tokens: int = TOKENS
    rate: float = RATE
    window_bytes: int = 1024


SLOW = (frozenset({"pacing", "paused"}),)
# More text, and sooner, than a reader's buffers hold or than it takes itself. A busy system sends it in few
# frames, which cost hardly more than the text.
MUCH: dict[str, Any] = {"tokens": 3000, "rate": 600.0}
HELD, RESUMED, SHORTENED = (frozenset({kind}) for kind in ("paused", "resumed", "shortened"))
CASES = {
    case.name: case
    for case in (
        Case("fast", Kind.FAST, window_bytes=WIDE_BYTES),
        Case("dripping", Kind.DRIPPING, Habits(drip_bytes_per_s=1500), told=SLOW, **MUCH),
        Case("flapping", Kind.FLAPPING, Habits(flap_s=0.7)),
        Case("half-closed", Kind.HALF_CLOSED, window_bytes=WIDE_BYTES),
        Case(
            "slow-processor",
            Kind.SLOW_PROCESSOR,
            Habits(process_bytes_per_s=1500, window=1024),
            told=SLOW,
            **MUCH,
        ),
        Case("stalled", Kind.STALLED, ends="length", told=(HELD, SHORTENED), **MUCH),
        Case("stalled-returns", Kind.STALLED, told=(HELD, RESUMED), returns_when_paused=True, **MUCH),
        Case("vanished", Kind.VANISHED, ends="length", told=(HELD, SHORTENED), **MUCH),
        Case("vanished-returns", Kind.VANISHED, told=(HELD, RESUMED), returns_when_paused=True, **MUCH),
        Case("rst", Kind.RST, ends="cancelled"),
        Case("rst-returns", Kind.RST, Habits(after_events=10, absent_s=0.3)),
    )
}
STAYS = frozenset(name for name, case in CASES.items() if case.ends == "stop")


class Played(NamedTuple):
    """What came of one case on one source."""

    case: Case
    seed: int
    seen: Seen
    status: dict[str, Any]
    story: Reader
    took_s: float
    lacked_s: float  # of that without a core

    @property
    def whole(self) -> str:
        """What the source would say, all of it."""
        return simulation.text(self.seed, 0, self.case.tokens)


async def play(house: House, source: str, case: Case, seed: int) -> Played:
    """One reader of one response, until the response has ended and the reader, if it stays, has it."""
    watch = Stopwatch()
    response_id = await asyncio.to_thread(
        house.create, source, seed, case.tokens, case.rate, window_bytes=case.window_bytes
    )
    habits = case.habits
    if case.returns_when_paused:
        habits = replace(habits, called_back=lambda: house.reaches(response_id, "paused"))
    seen = Seen()
    window = habits.window if case.kind is Kind.SLOW_PROCESSOR else None
    reading = asyncio.create_task(seen.read(case.kind, house.target(response_id, window=window), habits))
    try:
        status = await house.ended(response_id)
        took_s = watch.elapsed_s
        lacked_s = await asyncio.to_thread(watch.lacked_s, took_s)
        if case.name in STAYS:
            await reading
    finally:
        reading.cancel()
        await asyncio.wait([reading])
    story = await asyncio.to_thread(house.story_of, response_id)
    return Played(case, seed, seen, status, story, took_s, lacked_s)


@pytest.fixture(scope="module")
def scene(house: House) -> dict[tuple[str, str], Played]:
    """Every case on every source, all at once; by case and source."""

    async def run() -> dict[tuple[str, str], Played]:
        keys = [(name, source) for name in CASES for source in SOURCES]
        plays = [play(house, source, CASES[name], seed) for seed, (name, source) in enumerate(keys)]
        return dict(zip(keys, await asyncio.gather(*plays), strict=True))

    return asyncio.run(run())


every = pytest.mark.parametrize("source", SOURCES)


@every
@pytest.mark.parametrize("name", CASES)
def test_what_a_reader_has_is_the_beginning_of_what_was_said(
    scene: dict[tuple[str, str], Played], name: str, source: str
) -> None:
    """And what was said is the beginning of what the source says, with the digest of `done`."""
    played = scene[name, source]
    final = played.story.text
    assert played.story.exact() == ""
    assert played.whole.startswith(final)
    assert final.startswith(played.seen.text)
    assert played.seen.text
    assert played.status["sha256"] == hashlib.sha256(final.encode()).hexdigest()
    if name in STAYS:
        assert (played.seen.outcome.exact, played.seen.text) == (True, played.whole), played.seen.outcome


@every
@pytest.mark.parametrize("name", CASES)
def test_how_a_response_ends_and_what_its_readers_are_told(
    scene: dict[tuple[str, str], Played], name: str, source: str
) -> None:
    """In a terminal state, within bound, after the ladder's steps and no others than it has."""
    played = scene[name, source]
    case, notices = played.case, played.story.notices
    assert played.status["status"] == ("cancelled" if case.ends == "cancelled" else "completed")
    assert played.status["finish_reason"] == case.ends, notices
    assert all(kinds & set(notices) for kinds in case.told), notices
    if case.ends != "length":
        assert "shortened" not in notices
    else:
        assert notices[-1] == "shortened"
        assert re.search(r"[.!?]\s*$", played.story.text), played.story.text[-40:]
    if name in STAYS:
        assert played.seen.outcome.notices == notices


@every
@pytest.mark.parametrize("name", ["fast", "half-closed"])
def test_those_who_read_are_not_disturbed(
    scene: dict[tuple[str, str], Played], name: str, source: str
) -> None:
    """Beside twenty bad readers on the same node and worker, they get each token when it is due."""
    played = scene[name, source]
    assert not {"pacing", "paused", "shortened"} & set(played.story.notices), played.story.notices
    assert played.took_s - played.lacked_s < TOKENS / RATE + 3.0
    assert played.seen.outcome.gaps.percentile(99) / 1e6 - played.lacked_s < 0.5


def test_who_resets_in_mid_frame_and_returns_goes_on_behind_the_last_whole_event(
    scene: dict[tuple[str, str], Played],
) -> None:
    """Two connections, one text."""
    for source in SOURCES:
        outcome = scene["rst-returns", source].seen.outcome
        assert (outcome.connections, outcome.ended) == (2, Ended.TERMINAL)


def test_nothing_is_kept_of_them(house: House, scene: dict[tuple[str, str], Played]) -> None:
    """No consumer, no response, no descriptor, no connection to an upstream; also in the second scene."""
    assert scene

    def is_empty() -> bool:
        nobody = not metric(house.api.port, "relay_consumers")
        return nobody and not metric(house.worker.metrics_port, "relay_worker_responses") and not house.asked

    wait_until(is_empty, "nobody is left", LEFT_WITHIN_S)
    before = house.open_files()

    async def again() -> None:
        cases = [CASES[name] for name in ("fast", "rst", "vanished")]
        plays = [
            play(house, source, case, 100 + 2 * at + n)
            for at, case in enumerate(cases)
            for n, source in enumerate(SOURCES)
        ]
        await asyncio.gather(*plays)

    asyncio.run(again())
    wait_until(is_empty, "nobody is left", LEFT_WITHIN_S)
    wait_until(lambda: house.open_files() <= before, f"no more than {before} files are open", LEFT_WITHIN_S)
    for process in (house.api, house.worker):
        assert "Traceback" not in process.stderr


# --- half-closed


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/streams/{}/text", "/v1/streams/{}"])
def test_whatever_was_asked_before_the_half_close_is_answered(house: House, path: str) -> None:
    """Also what is no stream; then the node closes, for nothing more can be asked."""
    response_id = house.create("simulated", 7, tokens=20, rate=0)
    house.api.wait_status(response_id, "completed")
    with socket.create_connection(("127.0.0.1", house.api.port), timeout=60) as client:
        client.sendall(f"GET {path.format(response_id)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_half_request_is_not_waited_for(house: House) -> None:
    """Its other half can never come."""
    with socket.create_connection(("127.0.0.1", house.api.port), timeout=60) as client:
        client.sendall(b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1024) == b""


@pytest.mark.parametrize("is_half_closed_first", [False, True])
def test_who_closes_altogether_is_soon_no_reader(house: House, *, is_half_closed_first: bool) -> None:
    """A close looks like a half-close: what is sent to it tells. Here nothing else is sent for a minute."""
    response_id = house.create("simulated", 8, tokens=3, rate=1 / 60)
    reader = Reader(house.api.port, f"/v1/streams/{response_id}/events")
    reader.until(lambda reader: reader.text, "the first token")
    if is_half_closed_first:
        reader._socket.shutdown(socket.SHUT_WR)
        reader.until(lambda reader: len(reader.comments) > 2, "it is still served: keep-alives come")
    assert len(house.api.status(response_id)["consumers"]) == 1
    reader.drain().close()
    # At once where the close is what the node sees; after a half-close, with the next keep-alive.
    wait_until(lambda: house.api.status(response_id)["consumers"] == [], "it is forgotten")
    house.api.call("DELETE", f"/v1/streams/{response_id}")


# --- gone without a word


def test_who_takes_nothing_for_the_timeout_of_tcp_is_cut() -> None:
    """A window that stays closed, or no acknowledgement: then nobody reads, and the source is ended."""
    with house_of({**NODE, "user_timeout_s": 1}, {**WORKER, "pause_max_s": 60}) as house:

        async def run() -> list[Played]:
            cases = [(source, kind) for source in SOURCES for kind in (Kind.STALLED, Kind.VANISHED)]
            plays = [
                play(house, source, Case("cut", kind, tokens=5000), seed)
                for seed, (source, kind) in enumerate(cases)
            ]
            return await asyncio.gather(*plays)

        for played in asyncio.run(run()):
            assert played.status["finish_reason"] == "cancelled"
            assert played.story.text.startswith(played.seen.text)
            assert played.story.exact() == ""
        wait_until(lambda: not house.asked, "the upstream is let go", LEFT_WITHIN_S)
        assert all(call.disconnected.is_set() for call in house.upstream.calls)


# --- several viewers


class View(NamedTuple):
    """Two viewers of one response: a fast one, and another; who stays away returns when told."""

    tokens: int
    rate: float
    pace: str
    kind: Kind
    habits: Habits
    returns: Callable[[House, str, Seen], Awaitable[object]] | None = None
    window_bytes: int = 1024


class Viewed(NamedTuple):
    """What the two saw, and when the other came back, in the loop's time."""

    view: View
    text: str
    fast: Seen
    other: Seen
    back_at: float
    lacked_s: float  # without a core


async def far_behind(_house: House, _response_id: str, fast: Seen) -> None:
    """Until the fast one has so much text."""
    await wait_until_async(lambda: len(fast.text) > 6000, "a lag of 6000 characters", END_WITHIN_S)


async def over(house: House, response_id: str, _fast: Seen) -> None:
    """Until the response has ended."""
    await house.ended(response_id)


VIEWS = {
    "frozen": View(1800, 150.0, "fastest", Kind.STALLED, Habits(after_events=10), far_behind, WIDE_BYTES),
    "slowest": View(900, 150.0, "slowest", Kind.SLOW_PROCESSOR, Habits(process_bytes_per_s=400, window=512)),
    "patience": View(2000, 400.0, "slowest", Kind.STALLED, Habits(after_events=10), over),
}


async def watch(house: House, source: str, view: View, seed: int) -> Viewed:
    """Both viewers, from the creation of their response to its end."""
    watch = Stopwatch()
    response_id = await asyncio.to_thread(
        house.create, source, seed, view.tokens, view.rate, pace=view.pace, window_bytes=view.window_bytes
    )
    fast, other, back_at = Seen(), Seen(), 0.0
    habits = view.habits

    async def back() -> None:
        nonlocal back_at
        assert view.returns is not None
        await view.returns(house, response_id, fast)
        back_at = asyncio.get_running_loop().time()

    if view.returns is not None:
        habits = replace(habits, called_back=back)
    window = habits.window if view.kind is Kind.SLOW_PROCESSOR else None
    await asyncio.gather(
        fast.read(Kind.FAST, house.target(response_id), habits),
        other.read(view.kind, house.target(response_id, window=window), habits),
    )
    lacked_s = await asyncio.to_thread(watch.lacked_s, watch.elapsed_s)
    return Viewed(view, simulation.text(seed, 0, view.tokens), fast, other, back_at, lacked_s)


@pytest.fixture(scope="module")
def viewed(house: House) -> dict[tuple[str, str], Viewed]:
    """Every view on every source, all at once; by view and source."""

    async def run() -> dict[tuple[str, str], Viewed]:
        keys = [(name, source) for name in VIEWS for source in SOURCES]
        views = [watch(house, source, VIEWS[name], 200 + seed) for seed, (name, source) in enumerate(keys)]
        return dict(zip(keys, await asyncio.gather(*views), strict=True))

    return asyncio.run(run())


@every
@pytest.mark.parametrize("name", VIEWS)
def test_all_viewers_have_the_whole_text(
    viewed: dict[tuple[str, str], Viewed], name: str, source: str
) -> None:
    """Whoever was waited for, and whoever was not."""
    seen = viewed[name, source]
    assert seen.fast.text == seen.other.text == seen.text
    assert (seen.fast.outcome.exact, seen.other.outcome.exact) == (True, True)


@every
def test_a_frozen_viewer_stops_nobody(viewed: dict[tuple[str, str], Viewed], source: str) -> None:
    """Neither the other nor the source, by default."""
    view, _, fast, _, _, lacked_s = viewed["frozen", source]
    assert not {"pacing", "paused", "resumed"} & set(fast.outcome.notices), fast.outcome.notices
    assert fast.parts[-1][0] - fast.parts[0][0] - lacked_s < view.tokens / view.rate + 1.5


@every
def test_a_frozen_viewer_catches_up_in_large_deltas(
    viewed: dict[tuple[str, str], Viewed], source: str
) -> None:
    """Frames per second fall with its lag, and are as many as anybody's once it has caught up."""
    _, text, fast, frozen, back_at, _ = viewed["frozen", source]
    there, here = len(fast.until(back_at)), len(frozen.until(back_at))
    assert there - here > 3000
    # What had left before it was known to be frozen is in buffers, in the small frames of a live reader.
    late = (here + there) // 2
    assert frozen.deltas_of(late, there) < fast.deltas_of(late, there) / 4
    live_again = (there + len(text)) // 2
    assert frozen.deltas_of(live_again, len(text)) > fast.deltas_of(live_again, len(text)) / 2


@every
def test_the_slowest_sets_the_pace_where_that_is_asked(
    viewed: dict[tuple[str, str], Viewed], source: str
) -> None:
    """The source waits for whom it would leave behind, and so does the faster one."""
    fast = viewed["slowest", source].fast
    assert {"pacing", "paused"} & set(fast.outcome.notices), fast.outcome.notices
    assert fast.outcome.gaps.max_us > 300_000


@every
def test_the_slowest_is_waited_for_with_patience(viewed: dict[tuple[str, str], Viewed], source: str) -> None:
    """One that takes nothing stops the others for a while, and no longer: their answer is not shortened."""
    fast = viewed["patience", source].fast
    assert {"paused", "resumed"} <= set(fast.outcome.notices), fast.outcome.notices
    assert "shortened" not in fast.outcome.notices
    assert fast.outcome.gaps.max_us > 500_000


# --- acknowledging


def test_an_ack_inside_a_record_is_refused(house: House) -> None:
    """Whoever returns by name would begin in the middle of it; as it is, the text is whole."""
    response_id = house.create("simulated", 30, tokens=40, rate=0)
    house.api.wait_status(response_id, "completed")
    path = f"/v1/streams/{response_id}"
    with Reader(house.api.port, f"{path}/events?consumer=me&window=4096").some(2) as reader:
        inside = reader.position - 1
    answer = house.api.call("POST", f"{path}/consumers/me/ack", {"position": inside})
    assert (answer.status, answer.json["error"]["code"]) == (400, "malformed_request")
    assert Reader(house.api.port, f"{path}/events?consumer=me").run().exact() == ""
