"""Everything of a relay as children of this process: workers and one API node, restarted when they die.

Used by `relay up` and by the demo. Nothing is left behind: see `relay.cli.processes`.
"""

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from relay.cli.processes import Child, ChildEnded, relay_command
from relay.embedded import EmbeddedServer
from relay.errors import ServerUnfit

_DEATHS_MAX = 5  # of one child within _DEATHS_WITHIN_S; the next one ends everything
_DEATHS_WITHIN_S = 60.0
_BACKOFF_S = 0.2
_LOOK_EVERY_S = 0.5
_KILL_AFTER_S = 5.0  # added to a child's own drain time


@dataclass(frozen=True)
class Plan:
    """What to run. `env` is all of the children's environment, `log` takes their stderr, ours by default."""

    host: str
    port: int
    workers: int = 1
    concurrency: int = 64
    drain_s: float = 8.0
    worker_drain_s: float = 20.0
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: Path | None = None
    log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the API node serves."""
        host = (
            f"[{self.host}]" if ":" in self.host.strip("[]") and not self.host.startswith("[") else self.host
        )
        return f"http://{host}:{self.port}"

    def api(self) -> Child:
        """The API node, not yet started."""
        command = relay_command("api", "--host", self.host, "--port", str(self.port))
        return Child("API node", command, env=self.env, cwd=self.cwd, log=self.log)

    def all_workers(self) -> list[Child]:
        """The workers, not yet started."""
        command = relay_command("worker", "--concurrency", str(self.concurrency))
        return [
            Child(f"worker {n}", command, env=self.env, cwd=self.cwd, log=self.log)
            for n in range(1, self.workers + 1)
        ]


@asynccontextmanager
async def running(
    plan: Plan, *, server: EmbeddedServer | None = None, hurry: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Workers and an API node, ready, for as long as the block lasts; then drained, the API node first.

    `hurry`, when set, kills instead of draining. A `server` is started again like a child, empty.

    Raises:
        ChildEnded: a child did not become ready, or died more than 5 times within a minute. What the
            block does is cancelled.
    """
    api, workers = plan.api(), plan.all_workers()
    try:
        async with asyncio.TaskGroup() as group:
            # One after the other would double the start: neither needs the other to become ready.
            await _all_ready([*workers, api])
            keepers = [group.create_task(_keep(child)) for child in (*workers, api)]
            if server is not None:
                keepers.append(group.create_task(_keep_server(server)))
            try:
                yield
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await api.stop(plan.drain_s + _KILL_AFTER_S, hurry)
                await _stop_all(workers, plan.worker_drain_s + _KILL_AFTER_S, hurry)
    except BaseExceptionGroup as group_error:
        raise _first(group_error) from None
    finally:
        await _stop_all([*workers, api], 0, None)


async def _all_ready(children: list[Child]) -> None:
    async with asyncio.TaskGroup() as starting:
        for child in children:
            starting.create_task(child.start())


async def _stop_all(children: list[Child], grace_s: float, hurry: asyncio.Event | None) -> None:
    async with asyncio.TaskGroup() as stopping:
        for child in children:
            stopping.create_task(child.stop(grace_s, hurry))


class _Deaths:
    """Counts, and says how long to wait; refuses when there are too many."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._times: deque[float] = deque(maxlen=_DEATHS_MAX)  # older ones do not matter

    def wait_s(self, how: str) -> float:
        """Enter one. Raises ChildEnded when it is one too many."""
        now = time.monotonic()
        if len(self._times) == _DEATHS_MAX and now - self._times[0] < _DEATHS_WITHIN_S:
            raise ChildEnded(
                f"the {self._name} died {_DEATHS_MAX + 1} times within a minute ({how}): giving up"
            )
        self._times.append(now)
        recent = sum(now - then < _DEATHS_WITHIN_S for then in self._times)
        pause_s: float = _BACKOFF_S * 2 ** (recent - 1)
        print(f"relay: the {self._name} {how}; starting it again in {pause_s:.1f} s", file=sys.stderr)
        return pause_s


async def _keep(child: Child) -> None:
    """Start a child again whenever it has ended."""
    deaths = _Deaths(child.name)
    while True:
        code = await child.wait()
        pause_s = deaths.wait_s(_told(code))
        while True:
            await asyncio.sleep(pause_s)
            try:
                await child.start()
                break
            except ChildEnded as error:
                pause_s = deaths.wait_s(f"did not start again: {error}")


async def _keep_server(server: EmbeddedServer) -> None:
    """The same for the embedded server, which is no child of our event loop: we see that nobody listens."""
    deaths = _Deaths("embedded server")
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except ConnectionRefusedError:
            pass
        else:
            writer.close()
            continue
        await asyncio.sleep(deaths.wait_s("died, and the responses with it"))
        try:
            await asyncio.to_thread(server.restart)
        except ServerUnfit as error:
            raise ChildEnded(str(error)) from error


def _told(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _first(error: BaseException) -> BaseException:
    """The cause: what follows the first error of a group is our own cancelling."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
