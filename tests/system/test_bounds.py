"""An upstream that floods and a slow reader: what lies between them is bounded, and the text is exact."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relay.bench.backpressure import IN_FLIGHT_BYTES, SETTINGS, WINDOW_BYTES, WORKER_SOCKET_BYTES
from relay.bench.flood import TOKENS, WORD_BYTES, Upstream, flooding
from relay.bench.inflight import FIRST_BYTES, Stack, Watched, watch
from relay.bench.system import System
from relay.embedded import EmbeddedServer
from tests.support.system import Api, Worker

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks at sockets in /proc"),
]

# What a response costs is far below; a machine that is busy, and an allocator, may add to it.
GROWTH_KIB = 8192
WATCHED_S = 5.0
ALL_BYTES = TOKENS * WORD_BYTES


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A server, a node and a worker, before an upstream that floods; a first response has warmed them up."""
    settings = {name.removeprefix("RELAY_").lower(): value for name, value in SETTINGS}
    with ExitStack() as opened:
        upstream: Upstream = opened.enter_context(flooding())
        redis = opened.enter_context(EmbeddedServer())
        api = opened.enter_context(Api(redis.url, **settings, upstream_base_url=upstream.base_url))
        worker = opened.enter_context(Worker(redis.url, **settings, upstream_base_url=upstream.base_url))
        pids = [("redis", redis.pid), ("api", api.pid), ("worker", worker.pid)]
        stack = Stack("relay", System([f"http://127.0.0.1:{api.port}"], pids=pids), upstream)
        look(stack, "stalled", 2.0)
        yield stack


def look(stack: Stack, kind: str, seconds: float = WATCHED_S) -> Watched:
    """One reader of that kind."""
    return watch(stack, kind, seconds, lambda _: None)


@pytest.mark.parametrize("kind", ["stalled", "dripping", "gone"])
def test_what_is_in_flight_before_a_slow_reader_is_bounded(stack: Stack, kind: str) -> None:
    """Read from the upstream less confirmed by the client: window, credit, 256 KiB. No process grows."""
    watched = look(stack, kind)
    assert FIRST_BYTES <= watched.confirmed_bytes < watched.read_bytes
    assert watched.in_flight_bytes <= IN_FLIGHT_BYTES
    assert watched.worker_socket_bytes <= WORKER_SOCKET_BYTES
    assert max(watched.grown_kib.values()) < GROWTH_KIB, watched.grown_kib
    assert watched.is_exact
    if kind != "gone":
        # It did not stand still for good: once it read again more came than had been held for it.
        assert watched.text_bytes > watched.confirmed_bytes + WINDOW_BYTES


def test_a_fast_reader_gets_all_of_a_flood(stack: Stack) -> None:
    """Fifty megabytes of events, no byte of the text wrong, and never more in flight than for a slow one."""
    watched = look(stack, "fast", 25.0)
    assert (watched.ended, watched.text_bytes, watched.is_exact) == ("done", ALL_BYTES, True)
    assert watched.in_flight_bytes <= IN_FLIGHT_BYTES
