"""The main job, with real processes: the text is exact and in bounds, whoever is slow, killed or flushed."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.servers import admin
from tests.support.stage import (
    SHORT_LEASE,
    TAKE_OVER_S,
    Stage,
    has_text,
    holder_first,
    is_running,
    stage,
    text_of,
)
from tests.support.stopwatch import Stopwatch
from tests.support.system import call, metric
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(240)
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")

WINDOW_BYTES, CREDIT_BYTES = 8192, 16_384
# What a client that reads nothing leaves in sockets: its receive buffer, and up to NOTSENT_LOWAT and a
# write buffer at the node. Small, because the reader asks for small buffers and segments are not loopback's.
SOCKETS_BYTES = 64 * 1024
GROWTH_KIB = 4096


# --- many at once


class Whole(NamedTuple):
    """All that came of one response."""

    seed: int
    text: bytes
    done: dict[str, Any]
    offsets: list[int]


async def ask(port: int, request: bytes) -> bytes:
    """One request on a connection of its own; everything up to its end, chunking undone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        raw = await reader.read(-1)
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    pieces = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(pieces)


async def make_and_read(maker: int, node: int, seed: int, tokens: int, rate: int) -> Whole:
    """Create at one node, read at another to the end."""
    simulated = {"tokens": tokens, "tokens_per_second": rate, "seed": seed}
    body = json.dumps({"model": "simulated", "prompt": "Say it.", "simulation": simulated}).encode()
    made = json.loads(await ask(maker, b"%b\r\n\r\n%b" % (_head("POST", "/v1/streams", len(body)), body)))
    blocks = (await ask(node, _head("GET", made["events_url"]) + b"\r\n\r\n")).decode().split("\n\n")
    text: list[str] = []
    offsets: list[int] = []
    done: dict[str, Any] = {}
    for block in blocks:
        found = re.match(r"event: (\w+)\n(?:id: (\d+)-\d+\n)?data: (.*)$", block)
        if found is None:
            continue
        data = json.loads(found[3])
        offsets += [int(found[2])] if found[2] else []
        text += [data["text"]] if found[1] == "delta" else []
        done = data if found[1] == "done" else done
    return Whole(seed, "".join(text).encode(), done, offsets)


def _head(method: str, path: str, size: int = 0) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {size}"]).encode()


def test_two_hundred_responses_at_once_are_exact(scene: Stage) -> None:
    """Made at one node and read at the other, on two workers: every digest matches, and every word."""
    count, tokens, rate = 200, 500, 50
    nodes = [scene.api(), scene.api()]
    workers = [scene.worker(count // 2 + 20), scene.worker(count // 2 + 20)]

    async def all_of_them() -> list[Whole]:
        ports = [node.port for node in nodes]
        return await asyncio.gather(
            *(
                make_and_read(ports[seed % 2], ports[(seed + 1) % 2], seed, tokens, rate)
                for seed in range(count)
            )
        )

    watch = Stopwatch()
    responses = asyncio.run(all_of_them())
    watch.within(60, "ten seconds of text")
    for seed, text, done, offsets in responses:
        assert text.decode() == text_of(seed, tokens)
        assert done["sha256"] == hashlib.sha256(text).hexdigest()
        assert (done["finish_reason"], done["text_bytes"]) == ("stop", len(text))
        assert offsets == sorted(set(offsets))
    assert sum(metric(worker.metrics_port, "relay_tokens_total") for worker in workers) == count * tokens
    assert all(metric(worker.metrics_port, "relay_tokens_total") > 0 for worker in workers)
    assert all(metric(node.port, "relay_gap_bytes_total") == 0 for node in nodes)


# --- one that reads nothing


def rss_kib(pid: int) -> int:
    """The resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


@linux
def test_a_reader_that_reads_nothing_costs_a_bounded_amount(scene: Stage) -> None:
    """Its source stands still and memory stays; when it reads again the text is complete and exact."""
    roomy = {"max_response_bytes": 64 << 20}
    api = scene.api(**roomy, tcp_maxseg=1448, credit_bytes=CREDIT_BYTES)
    worker = scene.worker(**roomy, **SHORT_LEASE, pause_max_s=600)
    assert scene.reader(api, api.create(tokens=2000, rate=0)).run().exact() == ""
    pids = (api.pid, worker.pid, scene.redis.pid)
    before = [rss_kib(pid) for pid in pids]
    # One that would fill any memory, and one that can be read to its end.
    made = [api.create(tokens=tokens, rate=0, window_bytes=WINDOW_BYTES) for tokens in (4_000_000, 30_000)]
    readers = [scene.reader(api, one, receive_buffer=4096, maxseg=1448) for one in made]
    for one in made:
        api.wait_status(one["id"], "paused")
    # A pause may be told while a node that was late still fills sockets: from some moment on nothing moves.
    heads = _settled(lambda: [api.status(one["id"])["position"] for one in made], for_s=3.0)
    assert max(heads) <= WINDOW_BYTES + CREDIT_BYTES + SOCKETS_BYTES
    grown = [rss_kib(pid) - size for pid, size in zip(pids, before, strict=True)]
    assert max(grown) < GROWTH_KIB, f"api, worker and redis grew by {grown} KiB"
    (consumer,) = api.status(made[0]["id"])["consumers"]
    assert consumer["state"] in {"slow", "stalled"}
    endless, short = readers
    assert short.run().exact() == ""
    assert short.text == text_of(1, 30_000)
    assert {"paused", "resumed"} <= set(short.notices)
    endless.until(has_text(100_000), "far more than was held back")
    assert api.call("DELETE", f"/v1/streams/{made[0]['id']}").status == 202
    assert endless.run().exact() == ""
    assert text_of(1, 30_000 * len(endless.text) // len(short.text) + 1000).startswith(endless.text)


def _settled(value: Callable[[], Any], for_s: float, within_s: float = 60.0) -> Any:
    """The value that stays the same for so long. Raises AssertionError when none does."""
    deadline = time.monotonic() + within_s
    seen, since = value(), time.monotonic()
    while time.monotonic() - since < for_s:
        assert time.monotonic() < deadline, f"it still changes after {within_s:g} s: {seen}"
        time.sleep(0.1)
        if (now := value()) != seen:
            seen, since = now, time.monotonic()
    return seen


def _stays(value: Callable[[], Any], expected: Any, for_s: float) -> None:
    """What must not happen within a time: the value is another."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        assert value() == expected
        time.sleep(0.1)


# --- workers that end


def test_a_worker_killed_in_mid_response_is_replaced(scene: Stage) -> None:
    """Another goes on within the lease and a little more, and the text is exact."""
    api, *workers = scene.api(), scene.worker(**SHORT_LEASE), scene.worker(**SHORT_LEASE)
    made = api.create(tokens=800, rate=100, seed=3)
    reader = scene.reader(api, made).until(has_text(200), "some text")
    first, second = holder_first(*workers)
    first.kill()
    watch, had = Stopwatch(), len(reader.drain().text)
    reader.until(has_text(had + 1), "the text goes on")
    watch.within(TAKE_OVER_S, "from the loss of a worker to new text")
    assert reader.run().exact() == ""
    assert reader.text == text_of(3, 800)
    assert api.status(made["id"])["claims"] == 2
    assert metric(second.metrics_port, "relay_jobs_reclaimed_total") == 1


def test_a_worker_stopped_past_its_lease_is_fenced(scene: Stage) -> None:
    """It comes back to a response that is another's by now, writes nothing, and no reader can tell."""
    api, *workers = scene.api(), scene.worker(**SHORT_LEASE), scene.worker(**SHORT_LEASE)
    made = api.create(tokens=700, rate=80, seed=4)
    reader = scene.reader(api, made).until(has_text(200), "some text")
    first, second = holder_first(*workers)
    first.pause()
    wait_until(lambda: is_running(second), "the other worker takes over")
    first.resume()
    wait_until(lambda: metric(first.metrics_port, "relay_fenced_writes_total") == 1, "the first is fenced")
    wait_until(lambda: not is_running(first), "the first lets go")
    assert reader.run().exact() == ""
    assert reader.text == text_of(4, 700)
    assert api.status(made["id"])["claims"] == 2
    second.kill()
    assert scene.reader(api, api.create(tokens=20)).run().exact() == ""  # the first is none the worse


def test_a_worker_told_to_end_hands_over(scene: Stage) -> None:
    """After its short drain time it is gone, long before the response is; nobody waits for the long lease."""
    slow_lease = {"worker_drain_s": 0.3, "lease_s": 60, "lease_renew_s": 10}
    api, *workers = scene.api(), scene.worker(**slow_lease), scene.worker(**slow_lease)
    made = api.create(tokens=800, rate=100, seed=5)
    reader = scene.reader(api, made).until(has_text(200), "some text")
    first, second = holder_first(*workers)
    first.terminate()
    assert first.wait() == 0
    assert reader.run().exact() == ""
    assert reader.text == text_of(5, 800)
    assert set(reader.notices) <= {
        "limited",
        "coalescing",
        "pacing",
        "live",
    }  # a busy machine's; no hand-over is told
    assert api.status(made["id"])["claims"] == 2
    assert metric(second.metrics_port, "relay_jobs_reclaimed_total") == 0


# --- nodes that end


def test_a_reader_whose_node_was_killed_goes_on_at_another(scene: Stage) -> None:
    """With its last id: not a byte is missing, and none comes twice."""
    first, second = scene.api(), scene.api()
    scene.worker()
    made = first.create(tokens=800, rate=100, seed=6)
    reader = scene.reader(first, made).until(has_text(300), "some text")
    first.kill()
    reader.run()
    assert reader.closed
    assert reader.terminal is None
    again = scene.reader(second, made, after=reader.last_id).run()
    assert again.exact(before=reader.text) == ""
    assert reader.text + again.text == text_of(6, 800)


# --- a Redis that ends


def test_a_redis_that_restarts_with_its_file_costs_readers_nothing_but_time() -> None:
    """Killed and started again in mid-stream: the connection stays, and the text is exact."""
    with stage(aof=True) as scene:
        api, _ = scene.api(), scene.worker()
        made = api.create(tokens=700, rate=80, seed=7)
        reader = scene.reader(api, made).until(has_text(200), "some text")
        scene.redis.kill()
        scene.redis.restart()
        had = len(reader.drain().text)
        reader.until(has_text(had + 1), "the text goes on")
        assert reader.run().exact() == ""
        assert reader.text == text_of(7, 700)
        assert reader.named("rewind") == []
        assert metric(api.port, "relay_redis_reconnects_total") >= 1
        assert scene.reader(api, api.create(tokens=20)).run().exact() == ""


def test_a_flush_in_mid_stream_is_told_to_the_reader(scene: Stage) -> None:
    """A typed error within five seconds, and the deployment goes on with the next response."""
    api, worker = scene.api(), scene.worker(**SHORT_LEASE)
    made = api.create(tokens=2000, rate=50)
    reader = scene.reader(api, made).until(has_text(100), "some text")
    with admin(scene.redis.url) as client:
        client.flushall()
    watch = Stopwatch()
    reader.run()
    watch.within(5, "from the loss to the word of it")
    terminal = reader.terminal
    assert terminal is not None
    assert (terminal.name, terminal.data["code"], terminal.data["retryable"]) == (
        "error",
        "stream_lost",
        True,
    )
    wait_until(lambda: not is_running(worker), "the worker lets go")
    assert api.call("GET", made["events_url"]).status == 404
    assert scene.reader(api, api.create(tokens=20)).run().exact() == ""


# --- nobody reads


def test_a_response_that_nobody_reads_is_cancelled(scene: Stage) -> None:
    """After abandon_after_s no token is generated any more; whoever returns finds a well-formed end."""
    api, worker = scene.api(), scene.worker(abandon_after_s=1, **SHORT_LEASE)
    made = api.create(tokens=100_000, rate=100)
    told = api.wait_status(made["id"], "cancelled")
    assert told["finish_reason"] == "cancelled"
    tokens = metric(worker.metrics_port, "relay_tokens_total")
    assert 0 < tokens < 1000
    _stays(lambda: metric(worker.metrics_port, "relay_tokens_total"), tokens, for_s=1.0)
    late = scene.reader(api, made).run()
    assert late.exact() == ""
    assert text_of(1, 2000).startswith(late.text)


# --- what a worker measures

METRICS = {
    "relay_worker_responses": "gauge",
    "relay_worker_slots": "gauge",
    "relay_tokens_total": "counter",
    "relay_appends_total": "counter",
    "relay_append_seconds": "histogram",
    "relay_first_token_seconds": "histogram",
    "relay_stream_entries": "histogram",
    "relay_throttled_seconds_total": "counter",
    "relay_ladder_steps_total": "counter",
    "relay_generations_total": "counter",
    "relay_tokens_saved_total": "counter",
    "relay_jobs_reclaimed_total": "counter",
    "relay_fenced_writes_total": "counter",
    "relay_redis_reconnects_total": "counter",
}


def test_a_worker_tells_what_the_contract_names(scene: Stage) -> None:
    """Every metric of a worker is there with its type, and its numbers are those of what it did."""
    api, worker = scene.api(), scene.worker(concurrency=7)
    for seed in range(3):
        assert scene.reader(api, api.create(tokens=40, rate=200, seed=seed)).run().exact() == ""
    cancelled = api.create(tokens=10_000, rate=100)
    scene.reader(api, cancelled).until(has_text(20), "some text")
    assert api.call("DELETE", f"/v1/streams/{cancelled['id']}").status == 202
    api.wait_status(cancelled["id"], "cancelled")
    wait_until(lambda: not is_running(worker), "the worker lets go")
    told = call(worker.metrics_port, "GET", "/metrics").body.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", told, re.MULTILINE))
    assert {name: types.get(name) for name in METRICS} == METRICS
    port = worker.metrics_port
    assert metric(port, "relay_worker_slots") == 7
    assert 120 <= metric(port, "relay_tokens_total") < 1000
    assert metric(port, "relay_generations_total") == 4
    assert 'relay_generations_total{outcome="completed"} 3.0' in told
    assert 'relay_generations_total{outcome="cancelled"} 1.0' in told
    appends = metric(port, "relay_appends_total")
    assert 4 <= appends == metric(port, "relay_append_seconds_count")
    assert metric(port, "relay_first_token_seconds_count") == 4
    assert metric(port, "relay_first_token_seconds_sum") < 8
    assert metric(port, "relay_stream_entries_count") == 4
    assert metric(port, "relay_fenced_writes_total") == 0
    assert metric(port, "relay_jobs_reclaimed_total") == 0
    assert cancelled["id"] not in told
