"""A server and the processes that a test puts before it, and what such a test asks of them.

    with stage() as scene:
        api, workers = scene.api(), [scene.worker(**SHORT_LEASE) for _ in range(2)]
        reader = scene.reader(api, api.create(tokens=300, rate=100)).until(has_text(200), "some text")

`tests/system/conftest.py` has it as the fixture `scene`.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from relay import simulation
from relay.embedded import EmbeddedServer
from tests.support.system import Api, Reader, Worker, metric
from tests.support.upstream import Script, Upstream

LEASE_S = 3.0  # six renewals: a process that misses a few has not lost its job
SHORT_LEASE = {"lease_s": LEASE_S, "lease_renew_s": 0.5}
TAKE_OVER_S = LEASE_S + 3.0  # from the death of a worker to new text or an end
UPSTREAM_WITHIN_S = 10.0


class House(NamedTuple):
    """A deployment that outlives a test: its Redis, and nodes that are equal."""

    redis: EmbeddedServer
    api: Api
    other: Api


class Stage:
    """A server, and the processes that a test puts before it; all end with the test."""

    def __init__(self, stack: ExitStack, **server: Any) -> None:
        self._stack = stack
        self.redis = stack.enter_context(EmbeddedServer(**server))

    def api(self, **settings: object) -> Api:
        """One more API node."""
        return self._stack.enter_context(Api(self.redis.url, **settings))

    def worker(self, concurrency: int = 64, **settings: object) -> Worker:
        """One more worker."""
        return self._stack.enter_context(Worker(self.redis.url, concurrency=concurrency, **settings))

    def reader(self, api: Api, made: dict[str, Any], **given: Any) -> Reader:
        """A reader of a response that was made."""
        return self._stack.enter_context(Reader(api.port, made["events_url"], **given))

    def upstream(self, *scripts: Script) -> Upstream:
        """An OpenAI-compatible upstream, on a loop and a thread of its own."""
        return self._stack.enter_context(served(*scripts))


@contextmanager
def stage(**server: Any) -> Iterator[Stage]:
    """A stage for as long as the block lasts."""
    with ExitStack() as stack:
        yield Stage(stack, **server)


@contextmanager
def served(*scripts: Script) -> Iterator[Upstream]:
    """An `Upstream` beside a test that blocks. From here, only look at its calls and their events."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="upstream", daemon=True)
    thread.start()
    upstream = Upstream(*scripts)
    asyncio.run_coroutine_threadsafe(upstream.__aenter__(), loop).result(UPSTREAM_WITHIN_S)
    try:
        yield upstream
    finally:
        leaving = asyncio.run_coroutine_threadsafe(upstream.__aexit__(None, None, None), loop)
        leaving.result(UPSTREAM_WITHIN_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(UPSTREAM_WITHIN_S)
        loop.close()


def models_file(folder: Path, upstream: Upstream, **more: object) -> Path:
    """A models file with the one model `m`, on that upstream; more fields as TOML writes them."""
    lines = ["[models.m]", 'source = "openai"', f'base_url = "{upstream.base_url}"']
    path = folder / "models.toml"
    path.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in more.items())]))
    return path


def ask(api: Api, **more: object) -> dict[str, Any]:
    """Make a response of the model `m`; the create's JSON."""
    answer = api.call("POST", "/v1/streams", {"model": "m", "prompt": "Say it.", **more})
    assert answer.status == 201, answer
    made: dict[str, Any] = answer.json
    return made


def text_of(seed: int, tokens: int) -> str:
    """What a simulated response must say, whoever made which part of it."""
    return simulation.text(seed, 0, tokens)


def has_text(size: int) -> Callable[[Reader], bool]:
    """Whether a reader has so many characters."""
    return lambda reader: len(reader.text) >= size


def is_running(worker: Worker) -> bool:
    """Whether it has a response in its hands."""
    return metric(worker.metrics_port, "relay_worker_responses") > 0


def holder_first(*workers: Worker) -> list[Worker]:
    """The workers, the one that runs something before those that do not."""
    return sorted(workers, key=is_running, reverse=True)
