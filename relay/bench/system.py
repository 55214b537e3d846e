"""The system under test as separate processes: an embedded server, workers and API nodes.

They are the processes a deployment runs, started by the same commands, and they end with the block
that started them, whatever ends it. They run in a directory of their own, so that no `.env` of the
caller's changes what is measured; `RELAY_*` variables that tune do reach them and are told in the result.
"""

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from relay.bench import machine
from relay.embedded import EmbeddedServer, free_port
from relay.errors import ServerUnfit
from relay.wire import Wire

_ROOT = Path(__file__).parents[2]
_READY_WITHIN_S = 30.0
_STOP_WITHIN_S = 3.0  # nothing is worth a longer drain here: what a benchmark leaves nobody reads
_POLL_INTERVAL_S = 0.02
_LOG_TAIL_LINES = 12
# What would make our nodes other nodes, or ask the load client for a key it does not have.
_NOT_PASSED_ON = frozenset(
    f"RELAY_{name}"
    for name in (
        "REDIS_URL", "API_KEYS", "REQUIRE_KEYS", "MODELS_FILE", "UPSTREAM_BASE_URL", "UPSTREAM_API_KEY",
        "BENCH_KEY",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """How many processes of each kind, or the nodes that run already (`urls`), and a key for those.

    `logs` is a directory that keeps what our processes say; by default it goes when they end. `settings` are
    `RELAY_*` variables and their values, before those of the environment.
    """

    nodes: int = 1
    workers: int = 1
    urls: tuple[str, ...] = ()
    key: str | None = None
    logs: Path | None = None
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class System:
    """A running system: where its nodes are, and the process ids of each role, as far as they are ours."""

    urls: list[str]
    server: str = "not ours"
    pids: list[tuple[str, int]] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    metrics_urls: list[str] = field(default_factory=list)  # of the workers
    redis_url: str = ""  # where it is ours

    def pids_of(self, role: str) -> list[int]:
        """The processes of a role."""
        return [pid for name, pid in self.pids if name == role]


@contextmanager
def running(shape: Shape, *, responses: int, viewers: int = 1) -> Iterator[System]:
    """A system with room for `responses` with so many viewers each; or, given URLs, the one behind them.

    Raises ServerUnfit when a process does not become ready, with its last log lines.
    """
    _allow_open_files()
    if shape.urls:
        yield System(list(shape.urls))
        return
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedServer())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        logs = shape.logs or directory
        environment, settings = _environment(redis.url, responses, viewers, dict(shape.settings))
        system = System([], asyncio.run(_version(redis.url)), [("redis", redis.pid)], settings)
        system.redis_url = redis.url
        started: list[_Process] = []
        stack.callback(_stop, started)
        for number, (role, *arguments) in enumerate(_commands(shape, responses)):
            log = logs / f"{role}-{number}.log"
            command = ["relay.cli.main", role, *arguments]
            started.append(_start(role, command, log, environment, directory))
        for process in started:
            _join(system, process)
        yield system


@contextmanager
def running_obvious(upstream_url: str, *, logs: Path | None = None) -> Iterator[System]:
    """The stack that `relay.bench.obvious` is, with a Redis of its own. Raises ServerUnfit, see `running`."""
    _allow_open_files()
    with ExitStack() as stack:
        redis = stack.enter_context(EmbeddedServer())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        environment = _plain() | {"REDIS_URL": redis.url, "UPSTREAM_URL": upstream_url}
        started: list[_Process] = []
        stack.callback(_stop, started)
        system = System([], asyncio.run(_version(redis.url)), [("redis", redis.pid)])
        for role in ("worker", "api"):
            log = (logs or directory) / f"obvious-{role}.log"
            started.append(_start(role, ["relay.bench.obvious", role], log, environment, directory))
        for process in started:
            _join(system, process)
        yield system


def _join(system: System, process: "_Process") -> None:
    """Wait until it is ready, and note where it serves."""
    _, *where = _await_ready(process).split()
    system.pids.append((process.role, process.popen.pid))
    if process.role == "api":
        system.urls.append(where[0])
    elif where:
        system.metrics_urls.append(where[-1])


class _Process(NamedTuple):
    role: str
    popen: "subprocess.Popen[bytes]"
    log: Path


def _commands(shape: Shape, responses: int) -> Iterator[tuple[str, ...]]:
    # Little more than each worker's share, so that the first to ask does not take the work of all.
    slots = responses // shape.workers + responses // 10 + 64
    for _ in range(shape.workers):
        yield "worker", "--concurrency", str(slots)
    for _ in range(shape.nodes):
        yield "api", "--port", str(free_port())


def _environment(
    redis_url: str, responses: int, viewers: int, given: dict[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The environment of the processes, and what of it to tell in the result."""
    tuned = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RELAY_") and name not in _NOT_PASSED_ON
    }
    room = {
        "RELAY_MAX_ACTIVE": str(2 * responses + 64),
        "RELAY_MAX_CONSUMERS": str(2 * responses * viewers + 64),
    }
    settings = room | tuned | given
    return _plain() | settings | {"RELAY_REDIS_URL": redis_url}, settings


def _plain() -> dict[str, str]:
    """The caller's environment without `RELAY_*`, and with this code on the path."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return plain | {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), plain.get("PYTHONPATH"))))}


async def _version(redis_url: str) -> str:
    wire = await Wire.connect(redis_url)
    try:
        return await machine.server(wire)
    finally:
        await wire.close()


def _start(
    role: str, command: list[str], log: Path, environment: dict[str, str], directory: Path
) -> _Process:
    with log.open("wb") as output:  # a file: a pipe that fills would stop the process
        popen = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,  # a terminal's Ctrl-C is ours to handle: they end in order
        )
    return _Process(role, popen, log)


def _stop(started: list[_Process]) -> None:
    for process in started:
        process.popen.terminate()
    deadline = time.monotonic() + _STOP_WITHIN_S
    for process in started:
        try:
            process.popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()


def _await_ready(process: _Process) -> str:
    """The process's `ready` line. Raises ServerUnfit when it ends, or 30 s pass, without one."""
    deadline = time.monotonic() + _READY_WITHIN_S
    ended = False
    while time.monotonic() < deadline and not ended:
        ended = process.popen.poll() is not None
        *lines, _ = process.log.read_text(errors="replace").split("\n")
        ready = next((line for line in lines if line.startswith("ready")), None)
        if ready is not None and not ended:
            return ready
        time.sleep(_POLL_INTERVAL_S)
    tail = "\n".join(process.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
    raise ServerUnfit(f"the {process.role} process did not become ready. Its last words:\n{tail}")


def _allow_open_files() -> None:
    """As many files as we may have, for us and for those we start: a response is two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
