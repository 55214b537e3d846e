"""What the nemesis plays on: a Redis deployment, workers, nodes, an upstream, and a line before each.

Every reader speaks to a node through that node's line, and with one Redis every process speaks to it
through a line of its own, so that a network may fail anywhere. Processes can be killed, stopped and
replaced; a new one takes the old one's place behind the same line.
"""

import asyncio
import json
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from relay import simulation
from relay.client import Client
from tests.support.proxy import Proxy
from tests.support.system import Api, Process, Worker
from tests.support.topologies import Deployment, deployed
from tests.support.upstream import Call, Upstream, chunk, usage

T = TypeVar("T")
HOST = "127.0.0.1"
SMALL_BUFFER_BYTES = 16_384  # of the readers' lines: what lies in them is not in the node's hands
LEASE_S = 4.0
# Of the shipped client: a keep-alive comes every 2 s, and an outage may take a while.
CLIENT_SILENCE_S, CLIENT_RETRIES = 7.0, 20
SETTINGS: dict[str, object] = {
    "lease_s": LEASE_S,
    "lease_renew_s": 1,
    "keepalive_s": 2,
    "drain_s": 5,
    "worker_drain_s": 2,
    "retention_s": 120,
    "log_level": "info",
}
PLAIN, CONTINUING = "plain", "continuing"  # models of the upstream


class Role:
    """A place that a process fills: its line to Redis, and for a node the readers' line to it."""

    def __init__(self, name: str, redis_url: str, redis_line: Proxy | None, line: Proxy | None) -> None:
        self.name = name
        self.redis_url = redis_url
        self.redis_line = redis_line
        self.line = line
        self.process: Process | None = None
        self.starts = 0
        self.is_up = False


class Stage:
    """Made by `stage`."""

    def __init__(self, redis: Deployment, folder: Path, settings: dict[str, object]) -> None:
        self.redis = redis
        self.folder = folder
        self.settings = settings
        self.workers: list[Role] = []
        self.nodes: list[Role] = []
        self.balancer: Proxy
        self.upstream: Upstream
        self.client: Client
        self.killed: list[str] = []  # workers, by the names that their traces have
        self._turn = 0

    @property
    def roles(self) -> list[Role]:
        """All of them."""
        return [*self.workers, *self.nodes]

    @property
    def reader_lines(self) -> list[Proxy]:
        """The lines between readers and nodes."""
        return [role.line for role in self.nodes if role.line is not None]

    def port(self, rng: random.Random) -> int:
        """Where a reader may try its luck."""
        return rng.choice(self.reader_lines).port

    def next_node(self) -> tuple[str, int]:
        """Where the balancer sends a connection: nodes in turn, those that are known to be away left out."""
        up = [role for role in self.nodes if role.is_up] or self.nodes
        self._turn += 1
        line = up[self._turn % len(up)].line
        assert line is not None
        return HOST, line.port

    async def start(self, role: Role) -> None:
        """Fill a place with a new process; returns when it is ready."""
        role.starts += 1
        settings = {**self.settings}
        if role in self.workers:
            settings["trace_file"] = self.folder / f"{role.name}-{role.starts}.trace"
            role.process = await asyncio.to_thread(
                lambda: Worker(role.redis_url, concurrency=256, **settings)
            )
        else:
            api = await asyncio.to_thread(lambda: Api(role.redis_url, **settings))
            role.process = api
            assert role.line is not None
            role.line.target = (HOST, api.port)
        role.is_up = True

    async def kill(self, role: Role) -> None:
        """SIGKILL."""
        role.is_up = False
        if role in self.workers:
            self.killed.append(f"{role.name}-{role.starts}")
        process = self.process(role)
        await asyncio.to_thread(process.kill)
        await self._put_away(role, process)

    async def stop(self, role: Role, within_s: float = 30.0) -> int:
        """SIGTERM, and wait for its end; the exit code."""
        role.is_up = False
        process = self.process(role)
        process.terminate()
        code = await asyncio.to_thread(process.wait, within_s)
        await self._put_away(role, process)
        return code

    async def _put_away(self, role: Role, process: Process) -> None:
        (self.folder / f"{role.name}-{role.starts}.log").write_text(process.stderr)
        await asyncio.to_thread(process.close)

    @staticmethod
    def process(role: Role) -> Process:
        """The process in a place."""
        assert role.process is not None
        return role.process

    def keep_logs(self) -> None:
        """Copy what the living processes have logged beside what the dead left."""
        for role in self.roles:
            if role.process is not None and role.process in Process.living:
                (self.folder / f"{role.name}-{role.starts}.log").write_text(role.process.stderr)


def run_to_end(play: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own. SIGTERM cancels it, so that no process of the stage is left behind.

    Raises SystemExit then.
    """

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await play

    try:
        return uvloop.run(watched())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


async def _speak(call: Call) -> None:
    """The upstream: the seed's text at a rate, from where the prefix that it is handed ends."""
    body = call.json
    asked = json.loads(next(m["content"] for m in body["messages"] if m["role"] == "user"))
    prefix = "".join(m["content"] for m in body["messages"] if m["role"] == "assistant").encode()
    seed, tokens, rate = asked["seed"], asked["tokens"], asked["rate"]
    text = simulation.text(seed, 0, tokens).encode()[len(prefix) :].decode()
    words = [f" {word}" for word in text.split(" ")]
    words[0] = words[0][1:]
    await call.head()
    for word in words:
        if call.disconnected.is_set():
            return
        await call.event(chunk(word))
        await asyncio.sleep(1 / rate)
    await call.event(chunk(finish="stop"))
    await call.event(usage(3, tokens))
    await call.event("[DONE]")
    await call.end()


def _models(upstream: Upstream) -> str:
    entries = [
        f'[models.{name}]\nsource = "openai"\nbase_url = "{upstream.base_url}"\ncontinues = {continues}\n'
        for name, continues in ((PLAIN, "false"), (CONTINUING, "true"))
    ]
    return "\n".join(['[models.simulated]\nsource = "simulated"\n', *entries])


@asynccontextmanager
async def stage(
    shape: str, *, nodes: int = 2, workers: int = 3, lines: bool = True, **settings: object
) -> AsyncIterator[Stage]:
    """All of it, ready, for as long as the block lasts. `lines=False`: readers' lines alone."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-chaos-")))
        redis = await _entered(stack, lambda: deployed(shape, aof=True))
        upstream = await stack.enter_async_context(Upstream(_speak))
        (folder / "models.toml").write_text(_models(upstream))
        given = {**SETTINGS, "models_file": folder / "models.toml", **settings}
        made = Stage(redis, folder, given)
        made.upstream = upstream
        for index in range(workers):
            made.workers.append(await _role(stack, f"worker-{index}", redis, lines=lines, reads=False))
        for index in range(nodes):
            made.nodes.append(await _role(stack, f"node-{index}", redis, lines=lines, reads=True))
        made.balancer = await stack.enter_async_context(Proxy(HOST, 1).listening())
        made.balancer.route = made.next_node
        made.client = await stack.enter_async_context(
            Client(f"http://{HOST}:{made.balancer.port}", silence_s=CLIENT_SILENCE_S, retries=CLIENT_RETRIES)
        )
        stack.push_async_callback(_end, made)
        await asyncio.gather(*(made.start(role) for role in made.roles))
        yield made


async def _role(stack: AsyncExitStack, name: str, redis: Deployment, *, lines: bool, reads: bool) -> Role:
    redis_line, line, url = None, None, redis.url
    if lines and redis.shape == "single":
        redis_line = await stack.enter_async_context(Proxy(HOST, redis.data[0].port).listening())
        url = f"redis://{HOST}:{redis_line.port}/0"
    if reads:
        line = await stack.enter_async_context(Proxy(HOST, 1, buffer_bytes=SMALL_BUFFER_BYTES).listening())
    return Role(name, url, redis_line, line)


async def _entered(stack: AsyncExitStack, make: Callable[[], object]) -> Deployment:
    context = make()
    deployment: Deployment = await asyncio.to_thread(context.__enter__)  # type: ignore[attr-defined]
    stack.callback(context.__exit__, None, None, None)  # type: ignore[attr-defined]
    return deployment


async def _end(made: Stage) -> None:
    for role in made.roles:
        if role.process is not None:
            role.process.resume()
            await asyncio.to_thread(role.process.close)
